"""Weights from safetensors into modules: names and shapes proven against the config first.

- Nothing reaches a module unless the set of names, every shape and every kind of dtype is what
  the config calls for; anything else is a ModelRefused with file, tensor, expected and found.
- Vision and audio towers, and the K/V weights that releases carry for borrowing layers, are
  dropped; every other unknown tensor is refused.
- At the end every array of the module is evaluated, parameters and others (rope frequencies):
  mlx streams belong to threads, so one thread loads a model and uses it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models.gemma4_text import Model
from mlx_lm.utils import infer_quant_config

from model.config import TargetConfig
from model.files import ModelRefused
from model.safetensors import TensorEntry, WeightFile

log = logging.getLogger(__name__)

_TOWERS = (
    "vision_tower.",
    "audio_tower.",
    "multi_modal_projector.",
    "embed_vision.",
    "embed_audio.",
    "vision_embedder.",
)
_DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}
DTYPE_NAMES = ("auto", *_DTYPES)

_Sanitize = Callable[[dict[str, mx.array]], dict[str, mx.array]]


def resolve_dtype(name: str) -> mx.Dtype | None:
    """None: keep the checkpoint's own, which `auto` means on a GPU; the CPU wants float32."""
    if name not in DTYPE_NAMES:
        raise ModelRefused(f"dtype {name!r} is none of {', '.join(DTYPE_NAMES)}")
    if name == "auto":
        return None if mx.default_device() == mx.gpu else mx.float32
    return _DTYPES[name]


def load_target(files: Sequence[WeightFile], config: TargetConfig, dtype: mx.Dtype | None) -> Model:
    """mlx-lm's Gemma 4 text model with these weights, evaluated. Raises ModelRefused."""
    model = Model(config.text.model_args())
    fill(model, files, _target_name, model.sanitize, config.quantization is not None, dtype)
    return model


def fill(
    module: nn.Module,
    files: Sequence[WeightFile],
    rename: Callable[[str], str | None],
    sanitize: _Sanitize,
    quantized: bool,
    dtype: mx.Dtype | None,
) -> None:
    """Load checked files into a module, all arrays evaluated. Raises ModelRefused.

    rename: a tensor's name in the file to the module's, None to drop it. sanitize: tensors that
    the module keeps in another form (one in, none or several out). dtype None: the embedding's.
    """
    weights, origins = _read(files, rename, sanitize)
    if quantized:
        _quantize(module, weights)
    _check(module, weights, origins, files)
    module.load_weights(list(_cast(weights, dtype).items()), strict=True)
    module.eval()
    mx.eval(arrays(module))


def arrays(module: nn.Module) -> list[mx.array]:
    """Every array that a module holds, those that are no parameters included."""
    return [v for m in module.modules() for v in m.values() if isinstance(v, mx.array)]


def weight_bytes(module: nn.Module) -> int:
    return sum(array.nbytes for array in arrays(module))


def _target_name(name: str) -> str | None:
    """Hugging Face's `model.language_model.*`, mlx's `language_model.model.*` or bare `model.*`."""
    inner = name.removeprefix("model.")
    if inner.startswith(_TOWERS):
        return None
    if inner.startswith("language_model."):
        inner = inner.removeprefix("language_model.").removeprefix("model.")
        return f"model.{inner}"
    return name


def _read(
    files: Sequence[WeightFile], rename: Callable[[str], str | None], sanitize: _Sanitize
) -> tuple[dict[str, mx.array], dict[str, TensorEntry]]:
    """Lazy arrays by the module's names, and the tensor each was made of."""
    weights: dict[str, mx.array] = {}
    origins: dict[str, TensorEntry] = {}
    dropped: Counter[str] = Counter()
    for file in files:
        loaded = mx.load(str(file.path), format="safetensors")
        assert isinstance(loaded, dict)
        for tensor in file.tensors:
            target = rename(tensor.name)
            if target is None:
                dropped[tensor.name.removeprefix("model.").partition(".")[0]] += 1
                continue
            for name, array in _sanitized(sanitize, target, loaded[tensor.name], tensor):
                if name in weights:
                    raise _refused(tensor, f"gives {name} a second time")
                weights[name], origins[name] = array, tensor
    if dropped:
        towers = ", ".join(f"{name} {count}" for name, count in sorted(dropped.items()))
        log.info("left out %d tensors of media: %s", dropped.total(), towers)
    return weights, origins


def _sanitized(
    sanitize: _Sanitize, name: str, array: mx.array, tensor: TensorEntry
) -> list[tuple[str, mx.array]]:
    try:
        return list(sanitize({name: array}).items())
    except ValueError:
        raise _refused(tensor, f"of shape {list(tensor.shape)} cannot be split in two") from None


def _refused(tensor: TensorEntry, what: str) -> ModelRefused:
    return ModelRefused(f"{tensor.file}: {tensor.name[:200]} {what}")


def _quantize(module: nn.Module, weights: dict[str, mx.array]) -> None:
    """Replace modules by quantised ones where the files hold packed weights, as mlx-lm does.

    How a path was packed is read off its shapes: the config's per-path table only repeats it, in
    names that differ between conversions.
    """

    def packing(path: str, inner: nn.Module) -> dict[str, Any] | bool:
        if not hasattr(inner, "to_quantized") or f"{path}.scales" not in weights:
            return False
        return infer_quant_config(path, inner, weights)

    try:
        nn.quantize(module, class_predicate=packing)
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise ModelRefused(f"config.json: quantization does not fit the weights: {error}") from None


def _check(
    module: nn.Module,
    weights: dict[str, mx.array],
    origins: dict[str, TensorEntry],
    files: Sequence[WeightFile],
) -> None:
    expected: dict[str, mx.array] = dict(tree_flatten(module.parameters()))
    names = ", ".join(file.name for file in files)
    for name, wanted in expected.items():
        if name not in weights:
            raise ModelRefused(
                f"{names}: {name} is missing, expected is shape {list(wanted.shape)}, found none"
            )
        found = weights[name]
        if found.shape != wanted.shape:
            raise _refused(
                origins[name],
                f"does not fit the config: expected {name} is {list(wanted.shape)}, "
                f"found {list(found.shape)}",
            )
        if _is_float(found) != _is_float(wanted):
            raise _refused(
                origins[name],
                f"does not fit: expected {name} like {wanted.dtype}, found {found.dtype}",
            )
    for name in weights.keys() - expected.keys():
        raise _refused(origins[name], "is not called for: expected none, found it")


def _is_float(array: mx.array) -> bool:
    return mx.issubdtype(array.dtype, mx.floating)


def _cast(weights: dict[str, mx.array], dtype: mx.Dtype | None) -> dict[str, mx.array]:
    """One float dtype throughout, so that nothing is promoted on the way."""
    chosen = dtype if dtype is not None else _own_dtype(weights)
    return {k: v.astype(chosen) if _is_float(v) else v for k, v in weights.items()}


def _own_dtype(weights: dict[str, mx.array]) -> mx.Dtype:
    embedding = weights["model.embed_tokens.weight"]
    if not _is_float(embedding):
        embedding = weights["model.embed_tokens.scales"]
    return embedding.dtype if _is_float(embedding) else mx.bfloat16

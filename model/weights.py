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
from collections.abc import Callable, Sequence

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models.gemma4_text import Model

from model.config import TargetConfig
from model.files import ModelRefused
from model.packing import give_rows_in, quantize
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

Arrays = dict[str, mx.array]
Origins = dict[str, TensorEntry]
Sanitize = Callable[[Arrays], Arrays]


def resolve_dtype(name: str) -> mx.Dtype | None:
    """None: keep the checkpoint's own, which `auto` means on a GPU; the CPU wants float32."""
    if name not in DTYPE_NAMES:
        raise ModelRefused(f"dtype {name!r} is none of {', '.join(DTYPE_NAMES)}")
    if name == "auto":
        return None if mx.default_device() == mx.gpu else mx.float32
    return _DTYPES[name]


def load_target(files: Sequence[WeightFile], config: TargetConfig, dtype: mx.Dtype | None) -> Model:
    """mlx-lm's Gemma 4 text model with these weights, evaluated. Raises ModelRefused."""
    model, weights, _ = read_target(files, config)
    fill(model, weights, dtype)
    return model


def read_target(files: Sequence[WeightFile], config: TargetConfig) -> tuple[Model, Arrays, Origins]:
    """The model with nothing in it, and what `proven` gives for it. Raises ModelRefused."""
    model = Model(config.text.model_args())
    quantized = config.quantization is not None
    return model, *proven(model, files, _target_name, model.sanitize, quantized)


def fill(module: nn.Module, weights: Arrays, dtype: mx.Dtype | None) -> None:
    """Load proven arrays, and evaluate the module's. dtype None: the checkpoint's own."""
    chosen = dtype if dtype is not None else _own_dtype(weights)
    give_rows_in(module, chosen)
    module.load_weights(list(_cast(weights, chosen).items()), strict=True)
    module.eval()
    mx.eval(arrays(module))


def proven(
    module: nn.Module,
    files: Sequence[WeightFile],
    rename: Callable[[str], str | None],
    sanitize: Sanitize,
    quantized: bool,
) -> tuple[Arrays, Origins]:
    """Lazy arrays that fit the module, by its names, and the tensor each comes from.

    rename: a tensor's name in the file to the module's, None to drop it. sanitize: tensors that
    the module keeps in another form (one in, none or several out). quantized: the module's layers
    become quantised ones where the files hold packed weights. Raises ModelRefused.
    """
    weights, origins = _read(files, rename, sanitize)
    if quantized:
        quantize(module, weights)
    _check(module, weights, origins, files)
    return weights, origins


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
    files: Sequence[WeightFile], rename: Callable[[str], str | None], sanitize: Sanitize
) -> tuple[Arrays, Origins]:
    """Lazy arrays by the module's names, and the tensor each was made of."""
    weights: Arrays = {}
    origins: Origins = {}
    dropped = 0
    for file in files:
        loaded = mx.load(str(file.path), format="safetensors")
        assert isinstance(loaded, dict)
        for tensor in file.tensors:
            target = rename(tensor.name)
            dropped += target is None
            if target is None:
                continue
            for name, array in _sanitized(sanitize, target, loaded[tensor.name], tensor):
                if name in weights:
                    raise _refused(tensor, f"gives {name} a second time")
                weights[name], origins[name] = array, tensor
    if dropped:
        log.info("left out %d tensors of vision and audio towers", dropped)
    return weights, origins


def _sanitized(
    sanitize: Sanitize, name: str, array: mx.array, tensor: TensorEntry
) -> list[tuple[str, mx.array]]:
    try:
        return list(sanitize({name: array}).items())
    except ValueError:
        raise _refused(tensor, f"of shape {list(tensor.shape)} cannot be split in two") from None


def _refused(tensor: TensorEntry, what: str) -> ModelRefused:
    return ModelRefused(f"{tensor.file}: {tensor.name[:200]} {what}")


def _check(
    module: nn.Module,
    weights: Arrays,
    origins: Origins,
    files: Sequence[WeightFile],
) -> None:
    expected: Arrays = dict(tree_flatten(module.parameters()))
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


def _cast(weights: Arrays, dtype: mx.Dtype) -> Arrays:
    """One float dtype throughout, so that nothing is promoted on the way."""
    return {k: v.astype(dtype) if _is_float(v) else v for k, v in weights.items()}


def _own_dtype(weights: Arrays) -> mx.Dtype:
    """The embedding's, or the final norm's where the embedding is packed."""
    embedding = weights["model.embed_tokens.weight"]
    return embedding.dtype if _is_float(embedding) else weights["model.norm.weight"].dtype

"""Weights from safetensors into modules: names and shapes proven against the config first.

- Nothing is read unless the set of names, every shape and every kind of dtype is what the config
  calls for; anything else is a ModelRefused with file, tensor, expected and found.
- Vision and audio towers, and the K/V weights that releases carry for borrowing layers, are
  dropped; every other unknown tensor is refused.
- Tensors are read one by one in the order of the files, and the first that holds anything but
  finite numbers ends the load.
- At the end every array of the module is evaluated, parameters and others (rope frequencies):
  mlx streams belong to threads, so one thread loads a model and uses it.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from sapwood.model.checkpoint.config import TargetConfig
from sapwood.model.checkpoint.files import ModelRefused
from sapwood.model.checkpoint.mlx_lm_modules import Model
from sapwood.model.checkpoint.packing import give_rows_in, quantize
from sapwood.model.checkpoint.safetensors import TensorEntry, WeightFile
from sapwood.model.checkpoint.tensor_scale import TENSOR_SCALE

_log = logging.getLogger(__name__)

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

_KV = re.compile(r"model\.layers\.([0-9]{1,3})\.self_attn\.(?:[kv]_proj|k_norm)\.\w+")
M = TypeVar("M", bound=nn.Module)
Arrays = dict[str, mx.array]
Sanitize = Callable[[Arrays], Arrays]


def resolve_dtype(name: str) -> mx.Dtype | None:
    """None: keep the checkpoint's own, which `auto` means on a GPU; the CPU wants float32."""
    if name not in DTYPE_NAMES:
        raise ModelRefused(f"dtype {name!r} is none of {', '.join(DTYPE_NAMES)}")
    if name == "auto":
        return None if mx.default_device() == mx.gpu else mx.float32
    return _DTYPES[name]


@dataclass(frozen=True, slots=True)
class Fitted(Generic[M]):
    """A module and the checked weights that fit it: nothing was read but headers."""

    module: M
    weights: Arrays  # lazy, by the module's names
    origins: dict[str, TensorEntry]  # the tensor that each is made of

    @property
    def file_bytes(self) -> int:
        """What there is to read."""
        return sum(origin.end - origin.start for origin in self.origins.values())

    def load(self, dtype: mx.Dtype | None, report: Callable[[int], None] = lambda count: None) -> M:
        """The module filled and evaluated; once. dtype None: the checkpoint's own.

        report: called with the bytes of each tensor once it is read. Raises ModelRefused.
        """
        chosen = dtype if dtype is not None else _own_dtype(self.weights)
        codes = dict(coded(self.module))
        read: list[tuple[str, mx.array]] = []
        for name, origin in sorted(self.origins.items(), key=lambda i: (i[1].file, i[1].start)):
            # Popped: a source that was cast is free before the next one is read.
            array = self.weights.pop(name)
            if _is_float(array):
                array = array.astype(mx.float32 if name.endswith(f".{TENSOR_SCALE}") else chosen)
            _read_finite(array, codes.get(name), origin)
            read.append((name, array))
            report(origin.end - origin.start)
        give_rows_in(self.module, chosen)
        self.module.load_weights(read, strict=True)
        self.module.eval()
        mx.eval(arrays(self.module))
        return self.module


def fit_target(files: Sequence[WeightFile], config: TargetConfig) -> Fitted[Model]:
    """mlx-lm's Gemma 4 text model and its weights, unread. Raises ModelRefused."""
    model = Model(config.text.model_args())
    own, layers = config.text.own_layers, len(config.text.kinds)

    def sanitize(weights: Arrays) -> Arrays:
        # mlx-lm drops more than the K/V of layers that borrow: the rest is kept, to be refused.
        kept = model.sanitize(weights)
        found = [_KV.fullmatch(name) for name in weights]
        return kept if kept or any(m and own <= int(m[1]) < layers for m in found) else weights

    return fit(model, files, _target_name, sanitize, config.quantization is not None)


def fit(
    module: M,
    files: Sequence[WeightFile],
    rename: Callable[[str], str | None],
    sanitize: Sanitize,
    quantized: bool,
) -> Fitted[M]:
    """Match checked files and a module, reading no weight. Raises ModelRefused.

    rename: a tensor's name in the file to the module's, None to drop it. sanitize: tensors that
    the module keeps in another form (one in, none or several out). quantized: the module's layers
    become quantised ones where the files hold packed weights.
    """
    weights, origins = _lazy(files, rename, sanitize)
    if quantized:
        quantize(module, weights, origins)
    _check(module, weights, origins, files)
    return Fitted(module, weights, origins)


def arrays(module: nn.Module) -> list[mx.array]:
    """Every array that a module holds, those that are no parameters included."""
    return [v for m in module.modules() for v in m.values() if isinstance(v, mx.array)]


def _target_name(name: str) -> str | None:
    """Hugging Face's `model.language_model.*`, mlx's `language_model.model.*` or bare `model.*`."""
    inner = name.removeprefix("model.")
    if inner.startswith(_TOWERS):
        return None
    if inner.startswith("language_model."):
        inner = inner.removeprefix("language_model.").removeprefix("model.")
        return f"model.{inner}"
    return name


def _lazy(
    files: Sequence[WeightFile], rename: Callable[[str], str | None], sanitize: Sanitize
) -> tuple[Arrays, dict[str, TensorEntry]]:
    """Lazy arrays by the module's names, and the tensor each was made of."""
    weights: Arrays = {}
    origins: dict[str, TensorEntry] = {}
    dropped: Counter[str] = Counter()
    for file in files:
        try:
            loaded = mx.load(str(file.path), format="safetensors")
        except RuntimeError:
            raise ModelRefused(
                f"{file.where}: cannot be read, though its header is sound"
            ) from None
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
        _log.info("left out %d tensors of media: %s", dropped.total(), towers)
    return weights, origins


def _sanitized(
    sanitize: Sanitize, name: str, array: mx.array, tensor: TensorEntry
) -> list[tuple[str, mx.array]]:
    try:
        return list(sanitize({name: array}).items())
    except ValueError:
        raise _refused(tensor, f"of shape {list(tensor.shape)} cannot be split in two") from None


def _refused(tensor: TensorEntry, what: str) -> ModelRefused:
    return ModelRefused(f"{tensor.file}: {tensor.name} {what}")


def _read_finite(array: mx.array, code: str | None, origin: TensorEntry) -> None:
    """Read one tensor and prove it free of NaN and infinity; no float tensor is copied for it."""
    try:
        bad = not_finite(array, code)
        mx.eval(array, bad)
    except RuntimeError:
        raise _refused(origin, "cannot be read into memory") from None
    if bad.item():
        kind = code or _spelled(array.dtype)
        raise _refused(origin, f"holds NaN or infinity, expected finite {kind} values")


def not_finite(array: mx.array, code: str | None) -> mx.array:
    """Whether it holds NaN or infinity, lazily. code: as `coded` names it, None for all others."""
    if _is_float(array):  # a NaN stays one in both
        return ~(mx.isfinite(mx.min(array)) & mx.isfinite(mx.max(array)))
    if code == "e8m0":
        return mx.max(array) == 0xFF
    if code == "e4m3":
        return mx.max(array.view(mx.uint8) & 0x7F) == 0x7F
    return mx.array(False)


def coded(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of integer tensors that hold float8 numbers, and which: those that have a NaN."""
    for path, inner in module.named_modules():
        mode = getattr(inner, "mode", None)
        if mode in ("mxfp4", "mxfp8"):
            yield f"{path}.scales", "e8m0"
        if mode == "nvfp4":
            yield f"{path}.scales", "e4m3"
        if mode == "mxfp8":
            yield f"{path}.weight", "e4m3"


def _check(
    module: nn.Module,
    weights: Arrays,
    origins: dict[str, TensorEntry],
    files: Sequence[WeightFile],
) -> None:
    expected: Arrays = dict(tree_flatten(module.parameters()))
    place = files[0].where if len(files) == 1 else f"{files[0].where} to {files[-1].name}"
    for name, wanted in expected.items():
        if name not in weights:
            raise ModelRefused(
                f"{place}: {name} is missing, expected is shape {list(wanted.shape)}, found none"
            )
        found = weights[name]
        if found.shape != wanted.shape:
            raise _refused(
                origins[name],
                f"does not fit the config: expected {name} is {list(wanted.shape)}, "
                f"found {list(found.shape)}",
            )
        if found.dtype != wanted.dtype and not (_is_float(found) and _is_float(wanted)):
            raise _refused(
                origins[name],
                f"does not fit the config: expected {name} as {_spelled(wanted.dtype)}, "
                f"found {_spelled(found.dtype)}",
            )
    for name in sorted(weights.keys() - expected.keys()):
        raise _refused(origins[name], "is not called for: expected none, found it")


def _spelled(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")


def _is_float(array: mx.array) -> bool:
    return mx.issubdtype(array.dtype, mx.floating)


def _own_dtype(weights: Arrays) -> mx.Dtype:
    """The embedding's, or the final norm's where the embedding is packed."""
    embedding = weights["model.embed_tokens.weight"]
    return embedding.dtype if _is_float(embedding) else weights["model.norm.weight"].dtype

"""mlx's packed weights: how a module takes them in, and how a conversion makes them.

- How a path was packed is read off its arrays' shapes; the config's per-path table only repeats it,
  in names that differ between conversions.
- A module's rows come out in the weights' own float dtype: mlx dequantises rows of the modes
  without biases (mxfp4, mxfp8, nvfp4) to bfloat16, which would narrow everything after them.
- Every nvfp4 weight of a conversion has a scale of its own (tensor_scale); of others it may.
- A conversion packs what mlx-lm packs: linear layers, embeddings and experts whose rows divide into
  groups. Whatever chooses (the router, an ordered head's centroids) keeps 8 bits.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_unflatten

from sapwood.model.checkpoint.config import PACKINGS, Quantization
from sapwood.model.checkpoint.files import ModelRefused
from sapwood.model.checkpoint.mlx_lm_modules import QuantizedSwitchLinear
from sapwood.model.checkpoint.safetensors import TensorEntry
from sapwood.model.checkpoint.tensor_scale import (
    TENSOR_SCALE,
    rescaled,
    scaled_product,
    take_tensor_scales,
)

# Their groups and bits tell them apart, and their scales are bytes.
_BYTE_SCALED = [mode for mode in PACKINGS if mode != "affine"]
_PACKED = (nn.QuantizedLinear, nn.QuantizedEmbedding, QuantizedSwitchLinear)
_CHOOSERS = ("router.proj", "masked_embedding.centroids")
_CHOOSER = Quantization(8, 64, "affine")
_MX_LEAST = 2.0**-110
_SPELLING = re.compile(r"([234568])bit", re.ASCII)
SPELLINGS = (*(f"{bits}bit" for bits in PACKINGS["affine"][0]), *list(PACKINGS)[1:])


def parse_packing(text: str, group_size: int | None) -> Quantization:
    """`4bit` (affine; groups of 64 unless told) or the name of a mode. Raises ValueError."""
    if match := _SPELLING.fullmatch(text):
        found = Quantization(int(match[1]), group_size or 64, "affine")
    elif text in SPELLINGS:
        (bits,), (only,) = PACKINGS[text]
        found = Quantization(bits, group_size or only, text)
    else:
        raise ValueError(f"{text!r} is none of {', '.join(SPELLINGS)}")
    groups = PACKINGS[found.mode][1]
    if found.group_size not in groups:
        allowed = ", ".join(map(str, groups))
        raise ValueError(f"{text} takes groups of {allowed}, not of {found.group_size}")
    return found


def packings(module: nn.Module, wanted: Quantization | None) -> dict[str, Quantization | None]:
    """How a conversion stores each leaf that can be packed, by path: None is plain.

    What is packed already stays so; the rest is packed as `wanted`, where its rows divide into
    groups.
    """
    return {
        path: Quantization(inner.bits, inner.group_size, inner.mode)
        if isinstance(inner, _PACKED)
        else _chosen(path, inner, wanted)
        for path, inner in module.named_modules()
        if isinstance(inner, _PACKED) or hasattr(inner, "to_quantized")
    }


def _chosen(path: str, inner: Any, wanted: Quantization | None) -> Quantization | None:
    packing = _CHOOSER if wanted is not None and path.endswith(_CHOOSERS) else wanted
    if packing is None or inner.weight.shape[-1] % packing.group_size:
        return None
    return packing


def packed_rows(
    weight: mx.array, packing: Quantization, exponent: int | None
) -> tuple[tuple[mx.array, ...], mx.array]:
    """mx.quantize's results for rows [n, m], and in float32 what they stand for.

    exponent: of the matrix' own scale (tensor_scale); None where it has none.
    """
    if exponent is not None:
        weight = weight.astype(mx.float32) * 2.0**-exponent
    if packing.mode.startswith("mx"):
        # mlx 0.32.4 lets the exponent of a group below 2**-118 wrap: it comes back near 2**127.
        weight = mx.where(mx.abs(weight) < _MX_LEAST, 0, weight)
    how = (packing.group_size, packing.bits, packing.mode)
    made = mx.quantize(weight, *how)
    wide = (
        part if part.dtype in (mx.uint32, mx.uint8) else part.astype(mx.float32) for part in made
    )
    back = mx.dequantize(next(wide), next(wide), next(wide, None), *how, dtype=mx.float32)
    return made, back if exponent is None else back * 2.0**exponent


def quantize(
    module: nn.Module, weights: Mapping[str, mx.array], origins: Mapping[str, TensorEntry]
) -> None:
    """Replace modules by quantised ones where the files hold packed weights. Raises ModelRefused.

    origins: the tensor that each weight comes from. The new modules hold nothing yet that was
    evaluated.
    """

    def packing(path: str, inner: Any) -> dict[str, Any] | bool:
        if not hasattr(inner, "to_quantized") or f"{path}.scales" not in weights:
            return False
        where = f"{origins[f'{path}.scales'].file}: {path}"
        found = _read_off(where, path, inner, weights)
        if f"{path}.{TENSOR_SCALE}" in weights and found["mode"] != "nvfp4":
            raise ModelRefused(f"{where}: has a global scale, which only nvfp4 takes")
        return found

    nn.quantize(module, class_predicate=packing)
    take_tensor_scales(module, weights)


def _read_off(where: str, path: str, inner: Any, weights: Mapping[str, mx.array]) -> dict[str, Any]:
    """Bits, group size and mode, from the shapes of what is stored; `inner` is not packed yet."""
    scales, stored = weights[f"{path}.scales"], weights.get(f"{path}.weight")
    width = inner.weight.shape[-1]
    if stored is None or not (stored.ndim and scales.ndim and scales.size):
        raise ModelRefused(f"{where}: cannot tell how it is packed: no rows, or no scales")
    group_size, bits = width // scales.shape[-1], stored.shape[-1] * 32 // width
    modes = _BYTE_SCALED if scales.dtype == mx.uint8 else ["affine"]
    fitting = [m for m in modes if bits in PACKINGS[m][0] and group_size in PACKINGS[m][1]]
    if not fitting:
        raise ModelRefused(
            f"{where}: found {bits} bits in groups of {group_size} with scales of {scales.dtype}, "
            f"expected are {SPELLINGS} in groups of {[PACKINGS[m][1] for m in modes]}"
        )
    if width % group_size:
        raise ModelRefused(f"{where}: rows of {width} do not divide into groups of {group_size}")
    return {"group_size": group_size, "bits": bits, "mode": fitting[0]}


class _Rows(nn.QuantizedEmbedding):
    """A quantised embedding whose rows are dequantised in a given dtype."""

    def __init__(self, embedding: nn.QuantizedEmbedding, dtype: mx.Dtype) -> None:
        super().__init__(
            embedding.num_embeddings,
            embedding.dims,
            embedding.group_size,
            embedding.bits,
            embedding.mode,
        )
        self._dtype = dtype
        if TENSOR_SCALE in embedding:
            self[TENSOR_SCALE] = embedding[TENSOR_SCALE]

    def __call__(self, x: mx.array) -> mx.array:
        biases = self.get("biases")
        rows = mx.dequantize(
            self["weight"][x],
            self["scales"][x],
            None if biases is None else biases[x],
            self.group_size,
            self.bits,
            self.mode,
            dtype=self._dtype,
        )
        return rescaled(rows, self[TENSOR_SCALE]) if TENSOR_SCALE in self else rows

    def as_linear(self, x: mx.array) -> mx.array:
        if TENSOR_SCALE in self:
            return scaled_product(super().as_linear, x, self[TENSOR_SCALE])
        product: mx.array = super().as_linear(x)
        return product


def give_rows_in(module: nn.Module, dtype: mx.Dtype) -> None:
    """Make quantised embeddings give their rows in `dtype`. Before their weights are loaded."""
    rows = [
        (path, _Rows(inner, dtype))
        for path, inner in module.named_modules()
        if isinstance(inner, nn.QuantizedEmbedding)
    ]
    if rows:
        module.update_modules(tree_unflatten(rows))


def packing_of(module: nn.Module) -> Quantization | None:
    """How most of a loaded module's weights are packed; None where none are."""
    return most_common(module, packings(module, None))


def most_common(module: nn.Module, found: Mapping[str, Quantization | None]) -> Quantization | None:
    """The packing of most weights of `found`'s leaves, `mixed` where any leaf differs."""
    leaves, values = dict(module.named_modules()), Counter[Quantization]()
    for path, packing in found.items():
        if packing is not None:
            values[packing] += _values(leaves[path])
    if not values:
        return None
    main = values.most_common(1)[0][0]
    return replace(main, mixed=any(packing != main for packing in found.values()))


def _values(inner: Any) -> int:
    packed = isinstance(inner, _PACKED)
    return int(inner.weight.nbytes * 8 // inner.bits if packed else inner.weight.size)

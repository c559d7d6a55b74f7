"""One more scale for a whole nvfp4 matrix, beside those of its groups: mlx's `global_scale`.

- Groups are scaled in e4m3, from 2**-9 to 448: without it all of a group below 0.006 becomes zero.
- A weight is its packed value times global_scale / LARGEST; experts have one for each.
- mlx 0.32.4 takes it when it dequantises, for experts' products on a GPU, and nowhere else. Here
  the product with packed values is scaled, in float32, so any device and any layer has it.
- A conversion takes a power of two, by which no digit of half precision is lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_unflatten

from sapwood.model.checkpoint.mlx_lm_modules import QuantizedSwitchLinear

TENSOR_SCALE = "global_scale"
LARGEST = 448 * 6  # of e4m3 times that of e2m1
# Beyond these the scale or its share is no normal float32.
_EXPONENT_MIN, _EXPONENT_MAX = -126, 116


def scale_exponent(largest: float) -> int:
    """k of the scale LARGEST * 2**k under which weights up to `largest` fit."""
    exponent = math.frexp(largest / LARGEST)[1] if largest else 0
    return min(max(exponent, _EXPONENT_MIN), _EXPONENT_MAX)


def rescaled(values: mx.array, scale: mx.array) -> mx.array:
    """Rows of packed values, or their products, as the weights' own; in the values' dtype."""
    return (values * (scale / LARGEST)).astype(values.dtype)


def take_tensor_scales(module: nn.Module, names: Container[str]) -> None:
    """Make those packed modules scaled for which `names` has a scale. Before they are loaded."""
    scaled = [
        (path, _scaled(inner))
        for path, inner in module.named_modules()
        if f"{path}.{TENSOR_SCALE}" in names
    ]
    if scaled:
        module.update_modules(tree_unflatten(scaled))


def _scaled(inner: Any) -> nn.Module:
    assert "bias" not in inner, "no layer of Gemma 4 has one"
    if isinstance(inner, nn.QuantizedEmbedding):
        inner[TENSOR_SCALE] = mx.ones(())  # weights.Fitted gives it rows that know of it
        return inner
    return (
        _ScaledExperts(inner) if isinstance(inner, QuantizedSwitchLinear) else _ScaledLinear(inner)
    )


def scaled_product(
    product: Callable[[mx.array], mx.array], x: mx.array, scale: mx.array
) -> mx.array:
    """product(x) rescaled, in x's dtype. Packed values reach LARGEST, their sums leave float16."""
    wide = x.astype(mx.float32) if x.dtype == mx.float16 else x
    return rescaled(product(wide), scale).astype(x.dtype)


class _ScaledLinear(nn.QuantizedLinear):
    def __init__(self, inner: nn.QuantizedLinear) -> None:
        rows, size = inner.weight.shape
        columns = size * 32 // inner.bits
        super().__init__(columns, rows, False, inner.group_size, inner.bits, inner.mode)
        self.global_scale = mx.ones(())

    def __call__(self, x: mx.array) -> mx.array:
        return scaled_product(super().__call__, x, self.global_scale)


class _ScaledExperts(QuantizedSwitchLinear):
    def __init__(self, inner: QuantizedSwitchLinear) -> None:
        super().__init__(
            inner.input_dims, inner.output_dims, inner.num_experts, False,
            inner.group_size, inner.bits, inner.mode,
        )  # fmt: skip
        self.global_scale = mx.ones((inner.num_experts,))

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        def product(x: mx.array) -> mx.array:
            return mx.gather_qmm(
                x,
                self["weight"],
                self["scales"],
                rhs_indices=indices,
                transpose=True,
                group_size=self.group_size,
                bits=self.bits,
                mode=self.mode,
                sorted_indices=sorted_indices,
            )

        return scaled_product(product, x, self.global_scale[indices][..., None, None])

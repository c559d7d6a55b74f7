"""2 ** x and a softmax in float32 on a CPU, where MLX calls the C library for each element.

- Its e ** x takes 12 ns an element. Chains of products and sums are vectorized, and all of this
  takes 2. Attention of a CPU spends most of its time there. A GPU has kernels of its own: nothing
  of this is for one, and nothing for half precision.
- 2 ** x = 2 ** n * 2 ** f with n whole and f within 1/2: the series of 2 ** f, and n added to the
  exponent's bits. Relative error 2e-7, and that of x's own rounding.
- An element's bits depend on nothing but the element.
"""

from __future__ import annotations

from functools import partial
from math import e, factorial, log, log2
from typing import cast

import mlx.core as mx

LOG2_E = log2(e)
# At -127 nothing is left of 1.0's own exponent: exactly 0 comes out.
EXPONENT_MAX = 127.0
_SERIES = tuple(log(2) ** k / factorial(k) for k in range(8))
# Added to a float32 below 2 ** 22 it leaves the nearest whole number in the lowest bits.
_ROUND = 1.5 * 2.0**23
_EXPONENT_BITS = 23


def whole_and_rest(x: mx.array) -> tuple[mx.array, mx.array]:
    """x within [-EXPONENT_MAX, EXPONENT_MAX] rounded, in its lowest bits, and what that took off.

    For the end of a compiled function, so that it is no kernel of its own.
    """
    rounded = x + _ROUND
    return rounded, x - (rounded - _ROUND)


def power_of_two(rounded: mx.array, rest: mx.array) -> mx.array:
    """2 ** x of float32 x, from `whole_and_rest`; 0 at the lower end."""
    bits = _shifted(mx.view(rounded, mx.int32), mx.view(_series(rest), mx.int32))
    return mx.view(bits, mx.float32)


def weighted(scores: mx.array, values: mx.array) -> mx.array:
    """softmax(scores) @ values; float32 scores [..., rows, L], values [..., L, D]."""
    weights = power_of_two(*_below(scores, mx.max(scores, axis=-1, keepdims=True)))
    # Divided at the end: D numbers a row, not L.
    return (weights @ values) / mx.sum(weights, axis=-1, keepdims=True)


def weighted_partial(scores: mx.array, values: mx.array) -> mx.array:
    """What `weighted` divides, what by, and the best score: [..., rows, D + 2]."""
    best = mx.max(scores, axis=-1, keepdims=True)
    weights = power_of_two(*_below(scores, best))
    sums = mx.sum(weights, axis=-1, keepdims=True)
    return mx.concatenate([weights @ values, sums, best], axis=-1)


@partial(mx.compile, shapeless=True)
def _below(scores: mx.array, best: mx.array) -> tuple[mx.array, mx.array]:
    return whole_and_rest(mx.maximum((scores - best) * LOG2_E, -EXPONENT_MAX))


@partial(mx.compile, shapeless=True)
def _series(rest: mx.array) -> mx.array:
    # In pairs (Estrin's scheme), which is so shallow that MLX makes one kernel of it.
    terms: list[mx.array | float] = [*_SERIES]
    while len(terms) > 1:
        terms = [a + b * rest for a, b in zip(terms[::2], terms[1::2], strict=True)]
        rest = mx.square(rest)
    return cast("mx.array", terms[0])


@partial(mx.compile, shapeless=True)
def _shifted(rounded: mx.array, power: mx.array) -> mx.array:
    return power + mx.left_shift(rounded, _EXPONENT_BITS)

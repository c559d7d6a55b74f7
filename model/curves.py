"""The MLP's gate and the logits' cap: gelu in its tanh form, and tanh.

- A GPU has a kernel for each. On a CPU in float32 they are quotients of polynomials. There the C
  library's e ** x takes 12 ns an element, and one of our own (cache/arrays/powers) several kernels
  that each read and write everything: 6 ns, longer than the products beside them. Sums and products
  alone are one kernel, and vectorized: 2.
- Coefficients are those of even powers, of least worst relative error (weighted least squares:
  Lawson, 1961), 9e-8 and 2e-8.
- Compiled for a shape: MLX fuses eleven operations deep, and in a function of any shape a broadcast
  of each operand counts. A shape is traced once, in 0.3 ms, and kept for good: so of rows there are
  `_ROWS` at most, and more are computed in parts.
- Where a curve ends is an argument and no number in the source: of a number g++ folds the
  polynomial, and a loop with a branch is not vectorized.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, cast

import mlx.core as mx

from sapwood.cache.attention_routes import Kernels
from sapwood.model.checkpoint.mlx_lm_modules import logit_softcap

Gating = Callable[[mx.array, mx.array], mx.array]

# gelu(x) = x * sigmoid(2 * sqrt(2 / pi) * (x + 0.044715 * x ** 3)), its tanh form written out
#         = x * sigmoid(_CURVE * x * (_FLAT + x ** 2))
_CURVE = 0.044715 * 2 * math.sqrt(2 / math.pi)
_FLAT = 1 / 0.044715
# tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3)) = x * _GELU_OVER(x ** 2) / _GELU_UNDER(x ** 2) up to
# the end, where it is 1 - 9e-8; and what |x| counts for behind it.
_GELU_OVER = (0.797884488, 0.0720529303, 0.00728165735, 0.00031476586, 8.79860459e-06)
_GELU_UNDER = (1.0, 0.257795211, 0.0267363872, 0.0013932946, 7.01217591e-05, 4.31147727e-07)
_GELU_ENDS = mx.array(5.0), mx.array(0.0)
# tanh(x) likewise, between its ends, where it is 1 - 3e-8.
_TANH_OVER = (0.999999979, 0.133810216, 0.00349558329, 2.0609003e-05, 1.33545543e-08)
_TANH_UNDER = (1.0, 0.467143372, 0.0258769638, 0.00032856269, 7.77651376e-07)
_TANH_ENDS = mx.array(-9.0), mx.array(9.0)
_ROWS = 128


def gating(kernels: Kernels) -> Gating:
    """The device's."""
    return gated_on_cpu if kernels.backend == "cpu" else gated


@partial(mx.compile, shapeless=True)
def gated(gate: mx.array, up: mx.array) -> mx.array:
    """gelu(gate) * up, as one kernel."""
    # gate before up: half precision may not hold their product where gelu makes nothing of it.
    return up * (gate * mx.sigmoid(_CURVE * gate * (_FLAT + mx.square(gate))))


def gated_on_cpu(gate: mx.array, up: mx.array) -> mx.array:
    """The same of [T, .]; in float32 exactly relu's behind the end."""
    if gate.dtype != mx.float32:
        return gated(gate, up)
    if gate.shape[0] <= _ROWS:
        return _gated(gate, up, *_GELU_ENDS)
    return _in_parts(gated_on_cpu, gate, up)


def capped_on_cpu(cap: float, logits: mx.array) -> mx.array:
    """cap * tanh(logits / cap) of [T, .]."""
    if logits.dtype != mx.float32:
        return cast("mx.array", logit_softcap(cap, logits))
    if logits.shape[0] <= _ROWS:
        return _capped_by(cap)(logits, *_TANH_ENDS)
    return _in_parts(lambda rows: capped_on_cpu(cap, rows), logits)


def _in_parts(curve: Callable[..., mx.array], *of: mx.array) -> mx.array:
    cuts = list(range(_ROWS, of[0].shape[0], _ROWS))
    return mx.concatenate([curve(*p) for p in zip(*(mx.split(a, cuts) for a in of), strict=True)])


def _gated_of(gate: mx.array, up: mx.array, end: mx.array, nothing: mx.array) -> mx.array:
    # gelu is even but for half of x: relu(x) less what |x| * (1 - tanh) / 2 takes off, and behind
    # the end nothing is.
    size = mx.abs(gate)
    near = mx.where(size < end, size, nothing)
    square = mx.square(near)
    fourth = mx.square(square)
    over, under = _pairs(_GELU_OVER, square), _pairs(_GELU_UNDER, square)
    # under - near * over, pair by pair: of the whole ones it would be an operation too deep.
    first, second, third = (b - near * a for a, b in zip(over, under, strict=True))
    left = (first + third * mx.square(fourth)) + second * fourth
    taken = (0.5 * up * near) / _sum(under, fourth) * left
    found: mx.array = up * (0.5 * (gate + size)) - taken
    return found


_gated = cast("Callable[..., mx.array]", mx.compile(_gated_of))


@cache
def _capped_by(cap: float) -> Callable[..., mx.array]:
    raised = [cap * each for each in _TANH_OVER]

    def capped(logits: mx.array, low: mx.array, high: mx.array) -> mx.array:
        near = mx.minimum(mx.maximum(logits * (1 / cap), low), high)
        square = mx.square(near)
        fourth = mx.square(square)
        over, under = _pairs(raised, square), _pairs(_TANH_UNDER, square)
        return near * _sum(over, fourth) / _sum(under, fourth)

    return cast("Callable[..., mx.array]", mx.compile(capped))


def _pairs(terms: Sequence[float], square: mx.array) -> list[Any]:
    """Of a polynomial's five or six terms two and two, and what is left: Estrin's scheme."""
    return [
        low + terms[at + 1] * square if at + 1 < len(terms) else low
        for at, low in enumerate(terms) if not at % 2
    ]  # fmt: skip


def _sum(pairs: Sequence[Any], fourth: mx.array) -> mx.array:
    first, second, third = pairs
    total: mx.array = first + second * fourth + third * mx.square(fourth)
    return total

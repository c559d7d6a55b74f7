"""RMS norms of rows, and what is done with them at once: the residual stream and a layer's scale.

- rows * rsqrt(mean(rows ** 2) + eps), in float32, and then times the weight: mlx's rms_norm, to the
  bit. It is a kernel on a GPU; of a CPU it makes a dozen operations, half of all nodes of a step,
  each of which takes longer to hand over than a row takes to compute.
- On a CPU squares and their sum are two operations, and all that follows is one. Where there are
  many numbers the root of a row is an operation of its own: one that makes it anew for every number
  takes twice as long.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import mlx.core as mx

from sapwood.cache.attention_routes import Kernels

# Of so many numbers on the roots of rows are made apart; no bit depends on it.
_MANY = 2048


class RmsNorm:
    """A norm with a weight [D] or none; `norm(rows)` of rows [.., D], on a GPU."""

    def __init__(self, weight: mx.array | None, eps: float) -> None:
        self._weight, self._eps = weight, eps

    def __call__(
        self, rows: mx.array, residual: mx.array | None = None, scale: mx.array | None = None
    ) -> mx.array:
        """[.., D]: rows normed, added to `residual` where there is one, all of it times `scale`."""
        normed = mx.fast.rms_norm(rows, self._weight, self._eps)
        if residual is None:
            return normed
        return residual + normed if scale is None else _sum_scaled(residual, normed, scale)


class CpuNorm(RmsNorm):
    """The same on a CPU; with a weight wherever anything is added."""

    def __init__(self, weight: mx.array | None, eps: float, size: int) -> None:
        """size: D."""
        super().__init__(weight, eps)
        self._share, self._least = mx.array([[1 / size]], mx.float32), mx.array([[eps]], mx.float32)

    def __call__(
        self, rows: mx.array, residual: mx.array | None = None, scale: mx.array | None = None
    ) -> mx.array:
        then = [each for each in (self._weight, residual, scale) if each is not None]
        if rows.size < _MANY:
            return _normed(rows, self._share, self._least, *then)
        return _finished(rows, _root(_squares(rows), self._share, self._least), *then)


def norm_of(module: Any, kernels: Kernels) -> RmsNorm:
    """A module's with a weight, mlx-lm's or the drafter's. kernels: of the device."""
    return norm_with(module.weight, module.eps, module.weight.size, kernels)


def norm_with(weight: mx.array | None, eps: float, size: int, kernels: Kernels) -> RmsNorm:
    """The device's, of rows [.., size]."""
    return CpuNorm(weight, eps, size) if kernels.backend == "cpu" else RmsNorm(weight, eps)


@partial(mx.compile, shapeless=True)
def _sum_scaled(residual: mx.array, added: mx.array, scale: mx.array) -> mx.array:
    return (residual + added) * scale


def _squares(rows: mx.array) -> mx.array:
    return mx.sum(mx.square(rows.astype(mx.float32)), axis=-1, keepdims=True)


def _root_of(squares: mx.array, share: mx.array, least: mx.array) -> mx.array:
    return mx.rsqrt(squares * share + least)


def _finish(rows: mx.array, root: mx.array, *then: mx.array) -> mx.array:
    """then: weight, residual and scale, as far as they are wanted."""
    done = (rows.astype(mx.float32) * root).astype(rows.dtype)
    for each, apply in zip(then, (mx.multiply, mx.add, mx.multiply), strict=False):
        done = apply(done, each)
    return done


_root = mx.compile(_root_of, shapeless=True)
_finished = mx.compile(_finish, shapeless=True)


@partial(mx.compile, shapeless=True)
def _normed(rows: mx.array, share: mx.array, least: mx.array, *then: mx.array) -> mx.array:
    return _finish(rows, _root_of(_squares(rows), share, least), *then)

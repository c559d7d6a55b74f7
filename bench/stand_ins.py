"""Parts of a step taken out of the real runner, one after another, each by a cheap stand-in.

- Only for the time of a `with`, by replacing a name of the product; no line of the product knows.
- A stand-in gives what its part gives: as many arrays, of the same shapes. What else of the step
  leads into the part stays wanted, so that no matmul is left out with it; with all parts taken out
  of a step without drafts exactly its own matmuls are left, which a test counts.
- What comes out is no text. Nothing but time is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np

from sapwood.cache.arrays import pool_history
from sapwood.cache.arrays.attention import Grid
from sapwood.cache.arrays.batch import Batch
from sapwood.cache.arrays.pool_history import PoolHistory
from sapwood.cache.arrays.pools import Pools
from sapwood.model import runner
from sapwood.model.dense import Heads, Rotation
from sapwood.model.drafting import Drafts
from sapwood.model.norms import CpuNorm
from sapwood.model.products import OfRows
from sapwood.model.runner import Runner
from sapwood.model.sampling.distribution import DrawRows
from sapwood.model.sampling.suppression import Suppression
from sapwood.scheduler.plan import DecodeRow

Patches = Iterator[Any]
Known = dict[tuple[int, ...], mx.array]


def _draft(device: Runner) -> Patches:
    """The drafter's iterations, its own attention and sampling included: tokens from nowhere."""
    known: Known = {}

    def run(decodes: Sequence[DecodeRow], *_: object) -> Drafts:
        depths = [row.depth for row in decodes]
        at = np.zeros((len(depths), max(depths)), np.int32)
        ends = np.cumsum(depths)
        for row, (depth, end) in enumerate(zip(depths, ends, strict=True)):
            at[row, :depth] = np.arange(end - depth, end)
        count = int(ends[-1])
        return Drafts(_known(known, (count,)), at, (None,) * max(depths))

    if device.drafter is not None:
        yield mock.patch.object(device.drafter, "run", run)


def _masks(_: Runner) -> Patches:
    """Every query sees every key, by a mask that was there before."""
    known: Known = {}

    def mask(grid: Grid, *_: object) -> mx.array:
        return _known(known, (grid.n, 1, grid.queries, grid.length), mx.ones, mx.bool_)

    yield mock.patch.object(pool_history, "position_mask", mask)


def _attention(_: Runner) -> Patches:
    """The queries are their own answer; reading K/V and putting rows in order is left out too."""

    def attend(_: PoolHistory, queries: mx.array, trimmed: bool = False) -> mx.array:
        return queries

    yield mock.patch.object(PoolHistory, "attend", attend)


def _rope(_: Runner) -> Patches:
    """Nothing is rotated, and no sines and cosines are made."""

    def at(_: Rotation, positions: mx.array) -> OfRows:
        return lambda rows: rows

    yield mock.patch.object(Rotation, "at", at)


def _append(_: Runner) -> Patches:
    """K/V is computed and written nowhere: in the place of the pools it is what the step is for."""
    fresh: dict[int, list[mx.array]] = {}

    def append(pools: Pools, batch: Batch, keys: mx.array, values: mx.array) -> None:
        fresh[id(pools)] = [keys, values]

    yield mock.patch.object(Pools, "append", append)
    yield mock.patch.object(Pools, "arrays", property(lambda pools: fresh.get(id(pools), [])))


def _sampler(_: Runner) -> Patches:
    """No draft is accepted and token 0 is drawn, once the logits are there."""
    known: Known = {}

    def verify(logits: mx.array, rows: DrawRows, *_: object) -> mx.array:
        none = _known(known, (len(rows.depth), rows.depth_max + 2))
        drawn: mx.array = mx.depends([none], [logits])[0]
        return drawn

    yield mock.patch.object(runner, "verify", verify)
    yield mock.patch.object(Suppression, "of_target", lambda _, logits, firsts: logits)


def _norms(_: Runner) -> Patches:
    """All of the model's; those of heads with the weights that are multiplied behind them."""

    def heads(
        of: Heads, normed: mx.array, rotate: OfRows
    ) -> tuple[mx.array | None, tuple[mx.array, mx.array] | None]:
        rows = mx.unflatten(of.product(normed), -1, (-1, of.head_dim))
        if not of.keys:
            return rotate(rows), None
        turning = of.queries + of.keys
        turned = rotate(rows[:, :turning] if of.values else rows)
        values = rows[:, turning:] if of.values else rows[:, of.queries :]
        queries = turned[:, : of.queries] if of.queries else None
        return queries, (turned[:, of.queries :], values)

    def norm(
        _: CpuNorm, rows: mx.array, residual: mx.array | None = None, scale: mx.array | None = None
    ) -> mx.array:
        added = rows if residual is None else residual + rows
        return added if scale is None else added * scale

    yield mock.patch.object(mx.fast, "rms_norm", lambda x, *_: x)
    yield mock.patch.object(CpuNorm, "__call__", norm)
    yield mock.patch.object(Heads, "__call__", heads)


# In the order in which they are taken out: masks are made for attention, which reads what append
# has written, so that each is still there when the one before it goes.
STAND_INS: dict[str, Callable[[Runner], Patches]] = {
    "draft": _draft,
    "masks": _masks,
    "attention": _attention,
    "rope": _rope,
    "append": _append,
    "sampler": _sampler,
    "norms": _norms,
}


@contextmanager
def without(device: Runner, parts: Sequence[str]) -> Iterator[None]:
    """These parts' stand-ins in their places until the end of the `with`."""
    with ExitStack() as patched:
        for part in parts:
            for patch in STAND_INS[part](device):
                patched.enter_context(patch)
        yield


def _known(
    known: Known,
    shape: tuple[int, ...],
    make: Callable[[Sequence[int], mx.Dtype], mx.array] = mx.zeros,
    dtype: mx.Dtype = mx.int32,
) -> mx.array:
    """Made and computed at the first call for a shape."""
    if shape not in known:
        known[shape] = make(shape, dtype)
        mx.eval(known[shape])
    return known[shape]

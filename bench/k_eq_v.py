"""K that is V rotated (k_eq_v): what attention takes where it is not held beside V.

- Full layers of the families that have it, one sequence of so many keys, a round's queries, our own
  attention (arrays/folded). Everything in float32 on a CPU, in bfloat16 elsewhere.
- alone: V alone is held, and K is made of it in every call, from cosines and sines that are made
  once for all layers. 1/2 of the bytes.
- joined: of a head's 512 numbers 128 are rotated, and in the others K is V times a weight, which
  the queries take instead. So a token has one row: K's own part, what both share, V's own part. 5/8
  of the bytes. As K the row meets a query with zeros over V's own part; as V its first part is
  dropped. Nothing is made, and two products are a quarter larger.
- views: the same row, K and V cut out of it without a copy, where products take that: a CPU's copy.
- All ways' results must agree, or there is no figure. Ratios to both held apart, as they are.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping

import mlx.core as mx

from bench.families import FAMILIES, FULL_HEAD_SIZE, Family
from bench.measure import BenchError, Figure, Side, alternated
from bench.setup import Setup
from sapwood.cache.arrays.folded import folded
from sapwood.cache.attention_routes import Kernels
from sapwood.daemon import blas
from sapwood.model import device

ROTATED = 128  # of a head: its first and its 257th 64, side by side here
_KEYS, _QUICK_KEYS = 4096, 256
_QUERIES = (1, 4)
_CALLS = 9
_OFF_MAX = {"float32": 1e-3, "bfloat16": 0.1}

Ways = Mapping[str, Callable[[], mx.array]]


def measure(setup: Setup) -> list[Figure]:
    kernels = device.attention_kernels(mx.bfloat16)
    keys = _QUICK_KEYS if setup.quick else _KEYS
    found = [
        figure
        for family in FAMILIES.values()
        if family.k_eq_v
        for queries in _QUERIES
        for figure in _figures(setup, kernels, family, queries, keys)
    ]
    setup.blas.add(blas.loaded(os.getpid()))
    return found


def _figures(
    setup: Setup, kernels: Kernels, family: Family, queries: int, keys: int
) -> Iterator[Figure]:
    ways = ways_of(kernels, family, queries, keys)
    took: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(setup.runs):
        for name, call in alternated(list(ways.items()), run):
            took[name].append(_seconds(call))
    apart = Side("apart", "s", tuple(took.pop("apart")))
    for name, seconds in took.items():
        yield Figure(
            f"k_eq_v/{family.name}/{queries}/{name}",
            f"{family.name}, {queries} queries over {keys} keys of a full layer: {name} ÷ apart",
            Side(name, "s", tuple(seconds)),
            apart,
        )
    setup.say(f"{family.name}, {queries} queries: {', '.join(took)}")


def ways_of(kernels: Kernels, family: Family, queries: int, keys: int) -> Ways:
    """Attention of one sequence each way, on the same numbers. Raises BenchError.

    Values come back in a joined row's order: what both share, then V's own part.
    """
    dtype = mx.float32 if kernels.backend == "cpu" else mx.bfloat16
    width, kv_heads = FULL_HEAD_SIZE, family.full_kv_heads
    drawn = mx.random.normal((1, family.heads, queries, width), key=mx.random.key(0))
    # Scores are a sum over the width: no softmax is to have one key alone.
    q = (drawn / 8).astype(dtype)
    v = mx.random.normal((1, kv_heads, keys, width), key=mx.random.key(1)).astype(dtype)
    weight = mx.random.uniform(0.5, 1.5, (width,), key=mx.random.key(2)).astype(dtype)
    angles = mx.random.uniform(0.0, 6.3, (keys, ROTATED // 2), key=mx.random.key(3))
    cosines, sines = mx.cos(angles).astype(dtype), mx.sin(angles).astype(dtype)

    def made(values: mx.array) -> mx.array:
        low, high, rest = mx.split(values * weight, [ROTATED // 2, ROTATED], axis=-1)
        turned = [low * cosines - high * sines, low * sines + high * cosines]
        return mx.concatenate([*turned, rest], axis=-1)

    def in_order(values: mx.array) -> mx.array:
        return mx.concatenate([values[..., ROTATED:], values[..., :ROTATED]], axis=-1)

    k = made(v)
    row = mx.concatenate([k[..., :ROTATED], in_order(v)], axis=-1)
    asked = mx.concatenate([q[..., :ROTATED], q[..., ROTATED:] * weight[ROTATED:]], axis=-1)
    padded = mx.pad(asked, [(0, 0)] * 3 + [(0, ROTATED)])
    mx.eval(q, k, v, row, asked, padded, weight, cosines, sines)
    ways = {
        "apart": lambda: in_order(folded(kernels, q, k, v, None)),
        "alone": lambda: in_order(folded(kernels, q, made(v), v, None)),
        "joined": lambda: folded(kernels, padded, row, row, None)[..., ROTATED:],
        "views": lambda: folded(kernels, asked, row[..., :width], row[..., ROTATED:], None),
    }
    apart = ways["apart"]()
    for name, call in ways.items():
        off = float(mx.abs(call() - apart).max())
        if not off <= _OFF_MAX[str(dtype).rpartition(".")[2]]:
            raise BenchError(f"{name} is no other way to the same: off by {off:.2g}")
    return ways


def _seconds(call: Callable[[], mx.array]) -> float:
    mx.eval(call())
    took = []
    for _ in range(_CALLS):
        began = time.perf_counter()
        mx.eval(call())
        took.append(time.perf_counter() - began)
    return statistics.median(took)

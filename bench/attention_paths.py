"""MLX's attention against its three operations written out: does a shape have a fused kernel.

- The shapes of a decode step: each family's sliding and full layers, one sequence, queries of a
  round, a mask as ours, bfloat16. A ratio well below 1 is a fused kernel at work; about 1 is none.
- Nothing on a CPU: there is no fused kernel there.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from bench.families import FAMILIES, FULL_HEAD_SIZE, HEAD_SIZE

QUERIES, KEYS, TIMES, LAYERS = (1, 2, 4, 5, 8, 9), (1024, 8192), 7, 16


def paths() -> list[dict[str, Any]]:
    """A row for each family, kind of layer, context and number of queries; times in seconds."""
    shapes = [
        (family.name, kind, size, family.heads, kv_heads, keys, queries)
        for family in FAMILIES.values()
        for kind, size, kv_heads in (
            ("sliding", HEAD_SIZE, family.kv_heads),
            ("full", FULL_HEAD_SIZE, family.full_kv_heads),
        )
        for keys in ((family.window,) if kind == "sliding" else KEYS)
        for queries in QUERIES
    ]
    return [_row(*shape) for shape in shapes]


def _row(
    family: str, kind: str, size: int, heads: int, kv_heads: int, keys: int, queries: int
) -> dict[str, Any]:
    q = mx.random.normal((1, heads, queries, size), key=mx.random.key(0)).astype(mx.bfloat16)
    k, v = (
        mx.random.normal((1, kv_heads, keys, size), key=mx.random.key(i)).astype(mx.bfloat16)
        for i in (1, 2)
    )
    mask = mx.arange(keys)[None, None, None] < keys - queries + mx.arange(queries)[:, None] + 1
    mx.eval(q, k, v, mask)
    library, written = (lambda f=f: f(q, k, v, mask) for f in (_library, _written_out))
    off = mx.abs(library().astype(mx.float32) - written().astype(mx.float32)).max()
    library_s, written_s = _seconds(library), _seconds(written)
    return {
        "family": family, "layer": kind, "keys": keys, "queries": queries,
        "library_s": library_s, "written_out_s": written_s, "ratio": library_s / written_s,
        "difference": float(off),
    }  # fmt: skip


def _library(q: mx.array, k: mx.array, v: mx.array, mask: mx.array) -> mx.array:
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=1.0, mask=mask)


def _written_out(q: mx.array, k: mx.array, v: mx.array, mask: mx.array) -> mx.array:
    grouped = q.reshape(1, k.shape[1], -1, *q.shape[2:])
    scores = mx.where(mask[:, :, None], grouped @ k[:, :, None].swapaxes(-1, -2), -mx.inf)
    return (mx.softmax(scores, axis=-1) @ v[:, :, None]).reshape(q.shape)


def _seconds(attend: Callable[[], mx.array]) -> float:
    """Median of one call among several that are started together."""
    found = []
    for _ in range(TIMES):
        start = time.perf_counter()
        mx.eval([attend() for _ in range(LAYERS)])
        found.append((time.perf_counter() - start) / LAYERS)
    return statistics.median(found)


def main() -> int:
    """Prints one JSON object."""
    if mx.default_device() == mx.Device(mx.cpu):
        print(json.dumps({"skipped": "a CPU has no fused attention"}))
    else:
        print(json.dumps({"rows": paths()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""C6: K/V that went to disk and back is the same, bit for bit."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from sapwood.cache.arrays.live_caches import LayerShape
from sapwood.cache.arrays.paging import copy_out, paged_in, stored_shape
from sapwood.cache.arrays.ranges import Copies, Range

LAYERS = {
    "full": [LayerShape(sliding=False, kv_heads=1, head_dim=8)] * 2,
    "sliding": [LayerShape(sliding=True, kv_heads=heads, head_dim=4) for heads in (2, 1)],
}


def stored(kind: str, start: int, end: int, dtype: mx.Dtype) -> Range:
    """Bits of all kinds: what stands for infinities and for no number too."""
    shape = stored_shape(LAYERS[kind], end - start)
    words = np.random.default_rng(start).integers(0, 1 << 16, shape, np.uint16)
    stack = mx.array(words).view(dtype) if dtype.size == 2 else mx.array(words).astype(dtype)
    return Range(start, end, stack, tuple(layer.kv_heads for layer in LAYERS[kind]))


def bits(array: mx.array) -> Any:
    return np.asarray(array.view(mx.uint16 if array.dtype.size == 2 else mx.uint32))


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_out_of_any_edges_and_back(dtype: mx.Dtype) -> None:
    """Blocks of 4 tokens out of edges that end elsewhere; of sliding layers the last ones."""
    kv: dict[str, list[memoryview]] = {"full": [], "sliding": []}
    edges = {
        kind: [stored(kind, s, e, dtype) for s, e in ((0, 3), (3, 4), (4, 13))] for kind in LAYERS
    }
    for start in (0, 4, 8):
        kv["full"].append(memoryview(copy_out(edges["full"], start, start + 4)))
        if start:
            kv["sliding"].append(memoryview(copy_out(edges["sliding"], start, start + 4)))
    payload = paged_in(0, 12, kv, LAYERS, dtype, 1, Copies())  # type: ignore[arg-type]
    assert (payload.start, payload.end, payload.sliding_start) == (0, 12, 4)
    for kind, held in (("full", payload.full), ("sliding", payload.sliding)):
        assert held is not None and held.stack.dtype == dtype
        whole = np.concatenate([bits(edge.stack) for edge in edges[kind]], axis=1)
        assert (bits(held.stack) == whole[:, held.start : held.end]).all()
    assert payload.full_bytes == 12 * 4 * 8 * dtype.size


def test_without_sliding_blocks_there_is_none() -> None:
    edge = stored("full", 0, 4, mx.float32)
    kv = {"full": [memoryview(copy_out([None, edge], 0, 4))], "sliding": []}
    payload = paged_in(0, 4, kv, LAYERS, mx.float32, 1, Copies())  # type: ignore[arg-type]
    assert payload.sliding is None and payload.sliding_start == 4

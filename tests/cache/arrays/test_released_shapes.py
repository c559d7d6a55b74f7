"""What the tree holds of the five released shapes, on a device with Metal's pages and buffer count.

Real arrays of real sizes, in a real tree: M1 for what nobody here has, pages of 16 KiB.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import replace

import mlx.core as mx
import pytest

from bench.families import FAMILIES, FULL_HEAD_SIZE, HEAD_SIZE, KV_ITEM_BYTES, Family
from sapwood.cache.arrays.live_caches import LayerShape
from sapwood.cache.arrays.ranges import EdgePayload, LayerRange, Range, stack_layers
from sapwood.cache.prefix.node import Lease
from sapwood.cache.prefix.tree import Tree
from sapwood.scheduler.limits import ROOM_BYTES_PER_NODE
from tests.scheduler.fake_device import toy_facts

PAGE_BYTES, BUFFERS_MAX = 16_384, 499_000
EVERY = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def shapes(family: Family) -> list[LayerShape]:
    """Of the layers that own K/V."""
    return [
        LayerShape(False, family.full_kv_heads, FULL_HEAD_SIZE)
        if full
        else LayerShape(True, family.kv_heads, HEAD_SIZE)
        for full, own in zip(family.kinds, family.own, strict=True)
        if own
    ]


def stored(layers: Sequence[LayerShape], start: int, end: int) -> Range | None:
    parts: list[LayerRange | None] = []
    for layer in layers:
        zeros = mx.zeros((layer.kv_heads, end - start, layer.head_dim), mx.bfloat16)
        parts.append(LayerRange(start, end, zeros, zeros))
    return stack_layers(parts)


def edge(family: Family, start: int, end: int, sliding_start: int) -> EdgePayload:
    full = [shape for shape in shapes(family) if not shape.sliding]
    sliding = [shape for shape in shapes(family) if shape.sliding]
    window = stored(sliding, sliding_start, end) if sliding_start < end else None
    made = EdgePayload(start, end, stored(full, start, end), window, PAGE_BYTES)
    mx.eval(made.arrays)
    return made


def buffers(lease: Lease, tree: Tree) -> Iterator[int]:
    """Bytes of every array of a path, as they were asked of the device."""
    for payload in tree.path(lease):
        assert isinstance(payload, EdgePayload)
        yield from (array.nbytes for array in payload.arrays)


def grown(family: Family, tokens: int, edges: int = 3) -> tuple[Tree, Lease]:
    """A path of edges of so many tokens; of the first the older half of its window is gone."""
    tree, text = Tree(family.window, 20_000), tuple(range(tokens * edges))
    lease = tree.lease(b"", text, 0, 1)
    for n in range(edges):
        start, end = n * tokens, (n + 1) * tokens
        low = (start + end) // 2 if n == 0 else start
        tree.extend(lease, text, edge(family, start, end, low), 1)
    return tree, lease


@EVERY
@pytest.mark.parametrize("tokens", [24, 33, 100])
def test_m1_the_ledger_is_what_the_pages_are(family: Family, tokens: int) -> None:
    tree, lease = grown(family, tokens)
    asked = list(buffers(lease, tree))
    pages = sum(-(-size // PAGE_BYTES) * PAGE_BYTES for size in asked)
    assert 0.97 <= pages / tree.bytes <= 1.0
    assert len(asked) == tree.buffers == 2 * tree.nodes
    tree.release(lease, 2)  # which joins them
    assert tree.nodes == 1 and tree.bytes <= pages
    tree.drop()


@EVERY
def test_m1_a_node_is_two_buffers_and_takes_what_the_bound_of_nodes_is_reckoned_by(
    family: Family,
) -> None:
    """Counted on the device: every array of an edge is one of its buffers, and there is no more."""
    gc.collect()
    mx.clear_cache()  # a kept buffer is handed out for somewhat less than it has
    before = mx.get_active_memory()
    made = edge(family, 0, 40, 0)
    assert mx.get_active_memory() - before == sum(a.nbytes for a in made.arrays)
    assert len(made.arrays) * PAGE_BYTES == ROOM_BYTES_PER_NODE
    made.close()


@EVERY
def test_m1_a_promise_holds_what_is_captured(family: Family) -> None:
    per_token = {
        slides: sum(2 * s.kv_heads * s.head_dim for s in shapes(family) if s.sliding is slides)
        for slides in (False, True)
    }
    full, sliding = (per_token[slides] * KV_ITEM_BYTES for slides in (False, True))
    facts = replace(toy_facts(full_bytes=full, sliding_bytes=sliding), page_bytes=PAGE_BYTES)
    for tokens, newest in ((24, 24), (33, 20), (100, 1)):
        made = edge(family, 0, tokens, tokens - newest)
        assert facts.stored_bytes(tokens, newest) == made.full_bytes + made.sliding_bytes
        made.close()

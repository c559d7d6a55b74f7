"""Stored ranges and edge payloads: T9, C6, and T7's closes counted exactly once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sapwood.cache.arrays.live_caches import LiveCaches
from sapwood.cache.arrays.ranges import (
    EdgePayload,
    LayerRange,
    Range,
    read_portions,
    stack_layers,
    window_of,
)
from sapwood.cache.prefix.snapshot import Payload
from tests.cache.arrays.world import RING, ROUND, SHAPES, STEP, WINDOW, Feed, World, code

TOKENS = tuple(int(t) for t in np.random.default_rng(2).integers(0, 50, 64))


def payload(start: int, end: int, sliding_start: int | None = None) -> EdgePayload:
    low = start if sliding_start is None else sliding_start

    def held(layer: int, first: int) -> LayerRange | None:
        if first == end:
            return None
        keys, values = code(layer, SHAPES[layer], TOKENS[:end])
        return LayerRange(first, end, mx.array(keys[:, first:]), mx.array(values[:, first:]))

    full, sliding = [held(1, start)], [held(0, low), held(2, low)]
    return EdgePayload(start, end, stack_layers(full), stack_layers(sliding))


def check(held: Payload, start: int, end: int, sliding_start: int) -> None:
    edge = cast("EdgePayload", held)
    assert (edge.start, edge.end, edge.sliding_start) == (start, end, sliding_start)
    World().check_payload(edge, TOKENS)
    assert edge.full_bytes == 2 * 4 * 16 * (end - start)
    assert edge.sliding_bytes == 2 * 4 * (2 * 8 + 8) * (end - sliding_start)


@pytest.fixture
def closes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """[created, closed] ranges; equal again once every payload of the test is closed."""
    counts = [0, 0]
    made, closed = Range.__post_init__, Range.close

    def making(self: Range) -> None:
        counts[0] += 1
        made(self)

    def closing(self: Range) -> None:
        closed(self)
        counts[1] += 1

    monkeypatch.setattr(Range, "__post_init__", making)
    monkeypatch.setattr(Range, "close", closing)
    yield counts
    assert counts[0] == counts[1] > 0


@given(data=st.data())
@settings(max_examples=40)
def test_t4_split_thin_and_merge_keep_every_remaining_token(data: st.DataObject) -> None:
    """merge(split(x, k)) == x, at any cut and any thinning."""
    start, end = sorted(
        data.draw(st.lists(st.integers(0, 40), min_size=2, max_size=2, unique=True))
    )
    low = data.draw(st.integers(start, end))
    held: Payload = payload(start, end, low)
    if end - start > 1:
        at = data.draw(st.integers(start + 1, end - 1))
        parent, child = held.split(at)
        check(parent, start, at, min(low, at))
        check(child, at, end, max(low, at))
        # A sliding part that does not reach down to the cut leaves nothing above it to join.
        held = parent.merge(child)
    check(held, start, end, low)
    thinned = data.draw(st.integers(start, end))
    held = held.thin(thinned)
    check(held, start, end, max(low, thinned))
    held.close()


def test_t9_merge_over_a_gap_keeps_the_childs_sliding_part(closes: list[int]) -> None:
    merged = payload(0, 10).merge(payload(10, 20, 15))
    check(merged, 0, 20, 15)
    bare = payload(0, 10).merge(payload(10, 20, 20))
    check(bare, 0, 20, 20)
    merged.close()
    bare.close()


def test_t7_every_range_is_closed_exactly_once(closes: list[int]) -> None:
    left, right = payload(0, 20, 4).split(10)
    first, second = left.split(3)
    edges = [first.thin(2), second.thin(7), right.thin(20)]
    joined = edges[0].merge(edges[1])
    check(joined, 0, 10, 7)
    joined.close()
    edges[2].close()


def test_t7_a_taken_or_closed_payload_is_dead() -> None:
    split, thinned, parent, child, closed = (
        payload(0, 8), payload(0, 8), payload(0, 8), payload(8, 9), payload(0, 8),
    )  # fmt: skip
    split.split(3)
    thinned.thin(8)
    parent.merge(child)
    closed.close()
    for dead in (split, thinned, parent, child, closed):
        with pytest.raises(AssertionError, match="closed or taken twice"):
            dead.close()


@pytest.mark.parametrize("at", [0, 3, 9, 10])
def test_t4_split_at_an_end_is_refused(at: int) -> None:
    with pytest.raises(AssertionError):
        payload(3, 9).split(at)


PAGE_BYTES = 16384  # index arrays of a gather may outlive it by a moment


def test_thinning_gives_the_memory_back() -> None:
    held = EdgePayload(0, 4096, None, Range(0, 4096, mx.zeros((2, 4096, 64)), (1,)))
    mx.eval(held.arrays)
    mx.synchronize()  # the stream lets go of what it computed with only now
    before = mx.get_active_memory()
    kept = held.thin(4000)
    held.copies.make(0)
    mx.synchronize()
    assert before - mx.get_active_memory() >= 2 * 4000 * 64 * 4 - PAGE_BYTES
    kept.close()
    assert before - mx.get_active_memory() >= 2 * 4096 * 64 * 4 - PAGE_BYTES


def path(*edges: tuple[int, int, int]) -> list[Range | None]:
    return [payload(*edge).sliding for edge in edges]


@pytest.mark.parametrize(
    ("edges", "target", "covered"),
    [
        ([(0, 20, 0)], 20, (15, 20)),
        ([(0, 20, 0)], 12, (7, 12)),
        ([(0, 20, 0)], 3, (0, 3)),
        ([(0, 10, 0), (10, 20, 10)], 12, (7, 12)),
        ([(0, 10, 0), (10, 12, 10), (12, 20, 12)], 14, (9, 14)),
        # a parent thinned away never refuses what the child alone covers
        ([(0, 10, 10), (10, 20, 10)], 15, (10, 15)),
        ([(0, 10, 10), (10, 20, 10)], 14, (10, 14)),
        ([(0, 10, 8), (10, 20, 10)], 13, (8, 13)),
        # a gap: only what lies above it
        ([(0, 10, 0), (10, 20, 12)], 14, (12, 14)),
        ([(0, 10, 0), (10, 20, 15)], 14, None),
        ([(0, 10, 0), (10, 20, 20)], 20, None),
        ([(0, 10, 0)], 0, None),
        ([(0, 10, 0)], 12, None),
    ],
)
def test_t9_window_of_assembles_the_newest_gapless_part(
    edges: list[tuple[int, int, int]], target: int, covered: tuple[int, int] | None
) -> None:
    parts = path(*edges)
    portions = window_of(parts, target, WINDOW)
    for index, layer in enumerate((0, 2)):
        held = read_portions(portions, index)
        assert (None if held is None else (held.start, held.end)) == covered
        if held is not None:
            World().check_layer(layer, held, TOKENS)
    assert not any(part.closed for part in parts if part is not None)


def test_c6_page_out_and_page_in_is_bit_exact() -> None:
    """What is captured, restored into another slot and captured again has the same bits."""
    world = World()
    world.admit(0)
    world.step({0: Feed(TOKENS[:11])})
    root = world.caches.capture(0, 0, 11)
    world.step({0: Feed(TOKENS[11:14], kept=3)})
    world.step({0: Feed(TOKENS[14:17], kept=1)})
    leaf = world.caches.capture(0, 11, 15)
    assert root is not None
    assert leaf is not None
    world.step({0: Feed((1, 2, 3), kept=3)})
    world.release(0)
    world.admit(4, TOKENS[:15], [root, leaf])
    world.check_content(4)
    again = world.caches.capture(4, 0, 15)
    assert again is not None
    for one in (root.full, leaf.full):
        assert one is not None
        assert again.full is not None
        part = slice(one.start, one.end)
        assert np.array(one.stack).tobytes() == np.array(again.full.stack[:, part]).tobytes()
    for held in (root, leaf, again):
        held.close()
    # The live copy is its own: it does not need what it came from.
    world.check_content(4)
    world.step({4: Feed((5, 6), kept=1)})


def test_t7_admitting_leaves_the_path_to_the_tree_and_nothing_else_open(closes: list[int]) -> None:
    world = World()
    edges = [payload(0, 9), payload(9, 12), payload(12, 20)]
    world.admit(0, TOKENS[:14], edges)
    for edge in edges:
        edge.close()


def test_c6_holds_for_bfloat16() -> None:
    caches = LiveCaches(SHAPES, WINDOW, ROUND, mx.bfloat16, STEP)
    held = payload(0, 20)
    for kept in (held.full, held.sliding):
        assert kept is not None
        kept.stack = kept.stack.astype(mx.bfloat16)
    caches.restore(1, [held], 20)
    again = caches.capture(1, 20 - WINDOW, 20)
    assert again is not None
    for one, two in ((held.full, again.full), (held.sliding, again.sliding)):
        assert one is not None
        assert two is not None
        theirs = one.part(20 - WINDOW, 20).stack
        assert two.stack.dtype == mx.bfloat16
        assert mx.array_equal(theirs.view(mx.uint16), two.stack.view(mx.uint16)).item()


def test_t11_what_is_not_committed_cannot_be_captured() -> None:
    world = World()
    world.admit(0)
    world.step({0: Feed(TOKENS[:12])})
    world.step({0: Feed((1, 2, 3), kept=1)})
    with pytest.raises(AssertionError):
        world.caches.capture(0, 0, 14)
    held = world.caches.capture(0, 0, 13)
    assert held is not None
    world.check_payload(held, [*TOKENS[:12], 1])


def test_c6_a_capture_of_a_ring_starts_at_what_it_retains() -> None:
    world = World()
    world.admit(0)
    world.step({0: Feed(TOKENS[:30])})
    held = world.caches.capture(0, 5, 30)
    assert held is not None
    check(held, 5, 30, 30 - RING)
    old = world.caches.capture(0, 5, 12)
    assert old is not None
    check(old, 5, 12, 12)
    assert world.caches.capture(0, 12, 12) is None
    held.close()
    old.close()

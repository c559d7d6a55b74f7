"""The cache contract, operation by operation, for both kinds.

Every test is named after the operation and what the contract says of it.
"""

from __future__ import annotations

import pytest

from sapwood.cache.arrays.batch import Batch, Span
from sapwood.cache.arrays.live_caches import LayerShape
from tests.cache.arrays.handle import handles
from tests.cache.arrays.one_layer import BOTH, FULL, SLIDING, TOKENS, bits, holds, live, stored
from tests.cache.arrays.world import RING, WINDOW, Feed, World, live_bytes


@BOTH
def test_state_is_empty_when_nothing_was_written(shapes: tuple[LayerShape, ...]) -> None:
    world, cache = live(shapes, 0)
    assert cache.state == []
    world.step({0: Feed(TOKENS[:3])})
    assert [a.size > 0 for a in cache.state[:2]] == [True, True]


@BOTH
def test_offset_counts_the_tokens_held_and_update_appends(shapes: tuple[LayerShape, ...]) -> None:
    world, cache = live(shapes, 0)
    for start, end in ((0, 7), (7, 9), (9, 10)):
        span = Span(0, start, end - start)
        batch = Batch([], [span]) if start == 0 else Batch([span])
        feeds = {0: Feed(TOKENS[start:end])}
        history = cache.update(batch, *world.packed(0, batch, feeds))
        world.compare(0, batch, feeds, history, trimmed=False)
        assert cache.offset == end
        world.tokens[0] += TOKENS[start:end]
    holds(world, cache, max(0, 10 - RING) if shapes is SLIDING else 0, 10)


@BOTH
def test_free_drops_everything(shapes: tuple[LayerShape, ...]) -> None:
    world, cache = live(shapes, 9)
    cache.free()
    assert (cache.offset, cache.state, cache.snapshot(0)) == (0, [], None)
    assert cache.view(Batch([Span(0, 0, 1)]), WINDOW) is None
    assert live_bytes(world.caches) == 0


@BOTH
def test_snapshot_owns_a_copy_and_leaves_the_live_cache_unchanged(
    shapes: tuple[LayerShape, ...],
) -> None:
    world, cache = live(shapes, 9)
    before = bits(cache)
    held = cache.snapshot(5)
    assert held is not None
    assert bits(cache) == before
    world.rewind(0, 6)
    world.step({0: Feed((99, 98, 97))})
    assert (held.start, held.end) == (5, 9)
    world.check_range(0, held, TOKENS[:9])


@BOTH
def test_snapshot_is_none_when_nothing_lies_past_from_offset(
    shapes: tuple[LayerShape, ...],
) -> None:
    _, cache = live(shapes, 9)
    assert cache.snapshot(9) is None
    assert cache.snapshot(10) is None


def test_snapshot_full_clamps_a_negative_start_to_0() -> None:
    _, cache = live(FULL, 9)
    held = cache.snapshot(-3)
    assert held is not None
    assert (held.start, held.end) == (0, 9)


def test_snapshot_sliding_gives_what_the_ring_retains() -> None:
    world, cache = live(SLIDING, 20)
    held = cache.snapshot(-3)
    assert held is not None
    assert (held.start, held.end) == (20 - RING, 20)
    world.check_range(0, held, TOKENS[:20])


@BOTH
@pytest.mark.parametrize("target", [0, 6, 8, 9])
def test_restore_none_rewinds_in_place(shapes: tuple[LayerShape, ...], target: int) -> None:
    world, cache = live(shapes, 9)
    assert cache.restore(None, target)
    assert cache.offset == target
    if target:
        holds(world, cache, 0, target)


@BOTH
@pytest.mark.parametrize("target", [-1, 10])
def test_restore_none_is_false_and_changes_nothing_where_unreachable(
    shapes: tuple[LayerShape, ...], target: int
) -> None:
    _, cache = live(shapes, 9)
    before = bits(cache)
    assert not cache.restore(None, target)
    assert bits(cache) == before


def test_restore_none_full_rewinds_to_any_offset() -> None:
    for target in range(41):
        world, cache = live(FULL, 40)
        assert cache.restore(None, target)
        if target:
            holds(world, cache, 0, target)


def test_restore_none_sliding_reaches_exactly_what_the_ring_retains() -> None:
    reached = []
    for target in range(1, 41):
        world, cache = live(SLIDING, 40)
        before = bits(cache)
        if cache.restore(None, target):
            reached.append(target)
            holds(world, cache, 40 - RING, target)
        else:
            assert bits(cache) == before
    # The parent refuses any rewind once offset > window; the ring keeps W behind all of these.
    assert reached == list(range(40 - RING + WINDOW, 41))


@BOTH
@pytest.mark.parametrize("target", [-1, 13])
def test_restore_is_false_past_the_snapshots_end_or_for_a_negative_target(
    shapes: tuple[LayerShape, ...], target: int
) -> None:
    _, cache = live(shapes, 6)
    before = bits(cache)
    assert not cache.restore(stored(shapes, 4, 12), target)
    assert bits(cache) == before


def test_restore_full_is_false_over_a_gap() -> None:
    _, cache = live(FULL, 6)
    before = bits(cache)
    assert not cache.restore(stored(FULL, 7, 12), 12)
    assert bits(cache) == before


def test_restore_full_before_the_snapshots_start_is_a_plain_rewind() -> None:
    world, cache = live(FULL, 6)
    assert cache.restore(stored(FULL, 5, 12), 3)
    holds(world, cache, 0, 3)


@pytest.mark.parametrize("target", [4, 5, 9, 12])
def test_restore_full_feeds_the_snapshot_from_its_start_and_clamps_to_the_target(
    target: int,
) -> None:
    world, cache = live(FULL, 4)
    world.step({0: Feed((99, 98, 97))})  # another branch from 4 on: the snapshot replaces it
    assert cache.restore(stored(FULL, 4, 12), target)
    holds(world, cache, 0, target)


@pytest.mark.parametrize("shapes", [SLIDING, FULL], ids=["sliding", "full"])
def test_restore_into_a_free_slot_takes_room_for_it(shapes: tuple[LayerShape, ...]) -> None:
    world = World(shapes)
    cache = handles(world.caches, 3)[0]
    assert cache.restore(stored(shapes, 0, 30), 30)
    holds(world, cache, 30 - RING if shapes is SLIDING else 0, 30)


@pytest.mark.parametrize("offset", [0, 3, 12, 40])
def test_restore_sliding_replaces_the_content_wherever_the_live_offset_is(offset: int) -> None:
    world, cache = live(SLIDING, 0)
    if offset:
        world.step({0: Feed(tuple(range(100, 100 + offset)))})
    assert cache.restore(stored(SLIDING, 13, 20), 19)
    holds(world, cache, 13, 19)


@pytest.mark.parametrize(
    ("start", "target", "covered"),
    [
        (0, 0, True), (13, 0, True), (0, 3, True), (1, 3, False), (13, 18, True), (14, 18, False),
        (15, 20, True), (16, 20, False),
    ],
)  # fmt: skip
def test_restore_sliding_is_false_exactly_when_the_window_is_not_covered(
    start: int, target: int, covered: bool
) -> None:
    world, cache = live(SLIDING, 6)
    before = bits(cache)
    assert cache.restore(stored(SLIDING, start, 20), target) == covered
    if not covered:
        assert bits(cache) == before
    elif target:
        holds(world, cache, start, target)


@BOTH
def test_restore_leaves_the_snapshot_to_the_caller(shapes: tuple[LayerShape, ...]) -> None:
    world, cache = live(shapes, 0)
    held = stored(shapes, 0, 12)
    assert cache.restore(held, 12)
    world.tokens[0] = list(TOKENS[:12])
    world.step({0: Feed((99,) * 14)})
    world.check_range(0, held, TOKENS[:12])
    held.close()


@BOTH
def test_merge_joins_adjacent_ranges_and_takes_both(shapes: tuple[LayerShape, ...]) -> None:
    world, cache = live(shapes, 0)
    parent, child = stored(shapes, 2, 5), stored(shapes, 5, 9)
    merged = cache.merge(parent, child)
    assert merged is not None
    assert (merged.start, merged.end) == (2, 9)
    world.check_range(0, merged, TOKENS[:9])
    assert parent.closed
    assert child.closed


def test_merge_full_closes_the_other_side_of_a_missing_one() -> None:
    _, cache = live(FULL, 0)
    parent, child = stored(FULL, 2, 5), stored(FULL, 5, 9)
    assert cache.merge(parent, None) is None
    assert cache.merge(None, child) is None
    assert cache.merge(None, None) is None
    assert parent.closed
    assert child.closed


def test_merge_sliding_without_a_parent_gives_the_child() -> None:
    _, cache = live(SLIDING, 0)
    child = stored(SLIDING, 5, 9)
    assert cache.merge(None, child) is child
    assert not child.closed
    assert cache.merge(None, None) is None


def test_merge_sliding_without_a_child_closes_the_parent() -> None:
    _, cache = live(SLIDING, 0)
    parent = stored(SLIDING, 2, 5)
    assert cache.merge(parent, None) is None
    assert parent.closed


def test_merge_sliding_over_a_gap_keeps_only_the_child() -> None:
    _, cache = live(SLIDING, 0)
    parent, child = stored(SLIDING, 2, 5), stored(SLIDING, 6, 9)
    assert cache.merge(parent, child) is child
    assert parent.closed
    assert not child.closed


@BOTH
def test_split_gives_both_sides_and_takes_the_snapshot(shapes: tuple[LayerShape, ...]) -> None:
    world, cache = live(shapes, 0)
    held = stored(shapes, 2, 9)
    left, right = cache.split(held, 5)
    assert left is not None
    assert right is not None
    assert [(s.start, s.end) for s in (left, right)] == [(2, 5), (5, 9)]
    world.check_range(0, left, TOKENS)
    world.check_range(0, right, TOKENS)
    assert held.closed


@BOTH
def test_split_at_or_outside_an_end_gives_one_side(shapes: tuple[LayerShape, ...]) -> None:
    _, cache = live(shapes, 0)
    held = stored(shapes, 2, 9)
    assert cache.split(None, 5) == (None, None)
    for at in (0, 2):
        assert cache.split(held, at) == (None, held)
    for at in (9, 11):
        assert cache.split(held, at) == (held, None)
    assert not held.closed


@BOTH
def test_snapshot_is_closed_exactly_once(shapes: tuple[LayerShape, ...]) -> None:
    _, cache = live(shapes, 0)
    held = stored(shapes, 2, 9)
    assert held.nbytes == 2 * 2 * 7 * 8 * 4
    held.close()
    assert held.nbytes == 0
    for use in (held.close, lambda: cache.split(held, 5), lambda: held.part(3, 4)):
        with pytest.raises(AssertionError):
            use()

"""The cache contract: views, and what each kind of cache adds."""

from __future__ import annotations

import pytest

from sapwood.cache.arrays.batch import Batch, Span
from sapwood.cache.arrays.live_caches import LayerShape
from tests.cache.arrays.one_layer import BOTH, FULL, SLIDING, TOKENS, bits, holds, live, stored
from tests.cache.arrays.world import RING, ROUND, WINDOW, Feed


@BOTH
@pytest.mark.parametrize("count", [1, 4, WINDOW, WINDOW + 1, 30])
@pytest.mark.parametrize("keep", [WINDOW, WINDOW + 1])
def test_view_shows_the_newest_keep_committed_entries(
    shapes: tuple[LayerShape, ...], count: int, keep: int
) -> None:
    world, cache = live(shapes, count)
    world.step({0: Feed((90,) * ROUND, kept=0)})  # rejected drafts are never seen
    before = bits(cache)
    world.check_view([0], keep)
    assert cache.view(Batch([Span(0, count - 1, 1)]), keep) is not None
    assert bits(cache) == before


@BOTH
def test_view_is_none_when_empty(shapes: tuple[LayerShape, ...]) -> None:
    _, cache = live(shapes, 0)
    assert cache.view(Batch([Span(0, 0, 1)]), WINDOW) is None


def test_view_after_a_restore_shows_no_entry_of_the_slots_last_owner() -> None:
    world, cache = live(SLIDING, 30)
    world.release(0)
    world.admit(0)
    assert cache.restore(stored(SLIDING, 20 - WINDOW, 20), 20)
    world.tokens[0], world.floors[0] = list(TOKENS[:20]), 20 - WINDOW
    world.check_view([0], WINDOW + 1)


def test_kv_cache_grows_through_its_classes_and_keeps_its_content() -> None:
    world, cache = live(FULL, 3)
    for end in (8, 9, 16, 17, 33, 60):
        world.step({0: Feed(TOKENS[cache.offset : end])})
        holds(world, cache, 0, end)


def test_rotating_kv_cache_keeps_the_last_ring_of_a_long_write() -> None:
    world, cache = live(SLIDING, 3)
    world.step({0: Feed(TOKENS[3:43])})
    holds(world, cache, 43 - RING, 43)


@pytest.mark.parametrize("rows", range(1, ROUND + 1))
def test_rotating_kv_cache_rewinds_within_what_the_ring_retains(rows: int) -> None:
    """A round of any depth leaves W + 1 committed entries, whatever it keeps."""
    for kept in range(rows + 1):
        world, cache = live(SLIDING, 30)
        world.step({0: Feed(TOKENS[30 : 30 + rows], kept=kept)})
        held = cache.snapshot(0)
        assert held is not None
        assert held.start <= 30 - WINDOW - 1
        world.check_range(0, held, TOKENS[: 30 + kept])


def test_rotating_kv_cache_refuses_a_round_deeper_than_its_ring_spares() -> None:
    world, _ = live(SLIDING, 30)
    with pytest.raises(AssertionError, match=f"a round of {ROUND + 1} rows, {ROUND} at most"):
        world.step({0: Feed((1,) * (ROUND + 1), kept=0)})


def test_what_a_prefill_kept_aside_is_not_taken_for_another_branch_of_the_same_length() -> None:
    world, _ = live(SLIDING, 30)
    world.rewind(0, 28)
    world.step({0: Feed((90, 91), kept=2)})
    world.step({0: Feed((92, 93, 94))})


def test_a_sequence_that_ran_into_another_ones_branch_is_refused_not_guessed() -> None:
    world, cache = live(SLIDING, 30)
    assert cache.restore(None, 28)
    world.tokens[0] = list(TOKENS[:28])
    world.step({0: Feed((90, 91, 92), kept=3)})
    assert not cache.restore(None, 24)
    assert cache.restore(None, 28)
    holds(world, cache, 31 - RING, 28)

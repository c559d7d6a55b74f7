"""Speculation as the contract has it, and S7: what is not committed was never there."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import pytest

from sapwood.cache.arrays.attention import History
from sapwood.cache.arrays.batch import Batch, Span
from sapwood.cache.arrays.ranges import Range
from sapwood.cache.arrays.slot_cache import Cache, SlotCache, caches_of
from sapwood.cache.arrays.speculation import (
    SpeculativeLayers,
    Transaction,
    Wrappers,
    begin_isolated_speculation,
    begin_speculation,
)
from tests.cache.arrays.world import ROUND, WINDOW, Feed, Floats, World, code

PROMPT = tuple(range(20, 50))
DRAFTS = (7, 8, 9)


def sequence() -> tuple[World, list[SlotCache]]:
    """A sequence in slot 2, with a neighbour in slot 0 and a hole in slot 1."""
    world = World()
    for slot in (0, 1, 2):
        world.admit(slot)
    world.step({0: Feed((1, 2, 3)), 1: Feed((4,)), 2: Feed(PROMPT)})
    world.release(1)
    return world, caches_of(world.caches, 2)


def begun(caches: Sequence[Cache | None]) -> tuple[Wrappers, Transaction]:
    speculation = begin_speculation(caches)
    assert speculation is not None
    return speculation


def isolated(caches: Sequence[Cache | None]) -> Wrappers:
    wrappers = begin_isolated_speculation(caches)
    assert wrappers is not None
    return wrappers


def forward(world: World, wrappers: Wrappers, tokens: tuple[int, ...] = DRAFTS) -> list[Floats]:
    """A target forward of `tokens` over the wrappers, compared with plain attention."""
    batch = Batch([Span(2, len(world.tokens[2]), len(tokens))])
    feeds, outputs = {2: Feed(tokens, kept=0)}, []
    world.rng = np.random.default_rng(5)  # the same queries each time
    for layer, store in enumerate(SpeculativeLayers.of(wrappers).stores):
        history = store.update(batch, *world.packed(layer, batch, feeds))
        outputs.append(world.compare(layer, batch, feeds, history, trimmed=False))
    return outputs


def live_bits(world: World) -> list[bytes]:
    return [np.array(a).tobytes() for a in world.caches.arrays]


@pytest.mark.parametrize("n", range(-1, len(DRAFTS) + 2))
def test_commit_keeps_exactly_the_first_n_new_tokens_clamped_to_what_was_written(n: int) -> None:
    world, caches = sequence()
    wrappers, transaction = begun(caches)
    forward(world, wrappers)
    transaction.commit(n)
    world.tokens[2] += DRAFTS[: max(0, n)]
    for layer, cache in enumerate(caches):
        held = cache.snapshot(len(PROMPT) - WINDOW)
        assert cache.offset == len(world.tokens[2])
        assert held is not None
        world.check_range(layer, held, world.tokens[2])


def test_writes_of_the_forward_move_no_live_offset_and_damage_no_live_state() -> None:
    world, caches = sequence()
    begun_wrappers, _ = begun(caches)
    forward(world, begun_wrappers)
    assert [cache.offset for cache in caches] == [len(PROMPT)] * len(caches)
    world.floors[2] = len(PROMPT) + len(DRAFTS) - world.ring
    world.check_content(0)
    world.check_content(2)
    world.check_view([0, 2], WINDOW + 1)


def test_commit_0_leaves_everything_as_before() -> None:
    """The sequence goes on exactly as one that never speculated: S7."""
    outputs = []
    for speculates in (False, True):
        world, caches = sequence()
        if speculates:
            wrappers, transaction = begun(caches)
            forward(world, wrappers)
            transaction.commit(0)
            world.floors[2] = max(world.floors[2], len(PROMPT) + len(DRAFTS) - world.ring)
        world.check_view([2], WINDOW + 1)
        world.rng = np.random.default_rng(6)
        outputs.append(world.step({2: Feed((60,), kept=1), 0: Feed((61, 62), kept=1)}))
        world.check_content(2)
    for plain, after in zip(*outputs, strict=True):
        np.testing.assert_array_equal(plain, after)


def test_a_forward_that_never_ran_commits_nothing() -> None:
    world, caches = sequence()
    before = live_bits(world)
    begun(caches)[1].commit(3)
    assert live_bits(world) == before
    world.check_content(2)


def test_a_forward_that_failed_halfway_commits_nothing() -> None:
    world, caches = sequence()
    wrappers, transaction = begun(caches)
    batch = Batch([Span(2, len(PROMPT), 2)])
    assert wrappers[0] is not None
    wrappers[0].update(batch, *world.packed(0, batch, {2: Feed((1, 2), kept=0)}))
    transaction.commit(2)
    assert [cache.offset for cache in caches] == [len(PROMPT)] * len(caches)


def test_commit_happens_once_and_wrappers_serve_one_forward() -> None:
    world, caches = sequence()
    wrappers, transaction = begun(caches)
    forward(world, wrappers)
    with pytest.raises(AssertionError, match="one forward"):
        forward(world, wrappers)
    transaction.commit(1)
    with pytest.raises(AssertionError, match="committed twice"):
        transaction.commit(1)
    with pytest.raises(AssertionError, match="over"):
        forward(world, wrappers)


def test_a_speculative_prefill_is_refused() -> None:
    world, caches = sequence()
    wrappers, _ = begun(caches)
    batch = Batch([], [Span(2, len(PROMPT), 2)])
    assert wrappers[0] is not None
    with pytest.raises(AssertionError, match="prefill"):
        wrappers[0].update(batch, *world.packed(0, batch, {2: Feed((1, 2))}))


def test_layers_without_a_cache_pass_through() -> None:
    world, caches = sequence()
    layers = [caches[0], None, *caches[1:], None]
    wrappers, transaction = begun(layers)
    assert [w is None for w in wrappers] == [c is None for c in layers]
    assert [w is None for w in isolated(layers)] == [c is None for c in layers]
    forward(world, wrappers)
    transaction.commit(2)
    assert [cache.offset for cache in caches] == [len(PROMPT) + 2] * len(caches)
    assert isolated([None, None]) == [None, None]


def test_begin_is_none_where_a_cache_kind_cannot_take_part() -> None:
    _, caches = sequence()
    wrappers, _ = begun(caches)
    # A wrapper is itself a Cache that cannot be speculated over.
    mixed: list[Cache | None] = [caches[0], wrappers[1], None]
    assert begin_speculation(mixed) is None
    assert begin_isolated_speculation(mixed) is None


def test_caches_of_two_sequences_are_our_mistake() -> None:
    world, caches = sequence()
    with pytest.raises(AssertionError, match="several sequences"):
        begin_speculation([caches[0], caches_of(world.caches, 0)[1]])


def test_isolated_never_touches_live_state_and_gives_the_same_result() -> None:
    world, caches = sequence()
    copies, before = isolated(caches), live_bits(world)
    replayed = forward(world, copies)
    assert live_bits(world) == before
    wrappers, transaction = begun(caches)
    live = forward(world, wrappers)
    for theirs, ours in zip(live, replayed, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    transaction.commit(3)
    assert [w.offset for w in copies if w is not None] == [len(PROMPT)] * len(caches)


def test_isolated_replays_a_round_while_the_sequence_goes_on() -> None:
    world, caches = sequence()
    copies = isolated(caches)
    world.step({2: Feed((50, 51, 52), kept=3), 0: Feed((53,), kept=1)})
    world.step({2: Feed((54, 55), kept=1)})
    del world.tokens[2][len(PROMPT) :]
    forward(world, copies, (50, 51, 52))


def test_isolated_of_an_empty_sequence_starts_at_0() -> None:
    world = World()
    world.admit(2)
    forward(world, isolated(caches_of(world.caches, 2)))


def some_range(start: int, end: int) -> Range:
    keys, values = code(0, World().shapes[0], range(start, end), start)
    return Range(start, end, mx.array(keys), mx.array(values))


@pytest.mark.parametrize("kind", ["live", "isolated"])
def test_through_a_wrapper_nothing_can_be_stored_or_restored(kind: str) -> None:
    world, caches = sequence()
    before = live_bits(world)
    wrapper = (begun(caches)[0] if kind == "live" else isolated(caches))[0]
    assert wrapper is not None
    assert wrapper.snapshot(0) is None
    assert not wrapper.restore(None, 3)
    held = some_range(0, 9)
    assert not wrapper.restore(held, 5)
    assert wrapper.split(held, 5) == (None, held)
    assert not held.closed
    parent = some_range(0, 4)
    assert wrapper.merge(parent, held) is None
    assert parent.closed
    assert held.closed
    assert wrapper.merge(None, None) is None
    wrapper.free()
    assert wrapper.offset == len(PROMPT)
    assert live_bits(world) == before


@pytest.mark.parametrize("kind", ["live", "isolated"])
def test_through_a_wrapper_a_draft_views_what_is_committed(kind: str) -> None:
    _, caches = sequence()
    wrapper = (begun(caches)[0] if kind == "live" else isolated(caches))[0]
    assert wrapper is not None
    batch = Batch([Span(2, len(PROMPT) - 1, 1)])
    queries = mx.array(np.random.default_rng(0).normal(size=(1, 4, 8)).astype(np.float32))
    view: History | None = wrapper.view(batch, WINDOW + 1)
    live = caches[0].view(batch, WINDOW + 1)
    assert view is not None
    assert live is not None
    np.testing.assert_allclose(
        np.array(view.attend(queries)), np.array(live.attend(queries)), atol=1e-6
    )


def test_the_wrappers_state_is_what_the_forward_has_to_evaluate() -> None:
    world = World()
    world.admit(2)
    caches = caches_of(world.caches, 2)
    wrappers, _ = begun(caches)
    assert wrappers[0] is not None
    assert wrappers[0].state == []
    forward(world, wrappers, DRAFTS[:ROUND])
    assert wrappers[0].state

"""Speculation as the contract has it, and S7: what is not committed was never there."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from sapwood.cache.arrays.batch import Batch, Span
from sapwood.cache.arrays.speculation import (
    SpeculativeLayers,
    SpeculativeStore,
    Transaction,
    begin_isolated_speculation,
    begin_speculation,
)
from sapwood.cache.attention_routes import Kernels
from tests.cache.arrays.handle import Handle, handles
from tests.cache.arrays.world import WINDOW, Feed, Floats, World

PROMPT = tuple(range(20, 50))
DRAFTS = (7, 8, 9)


def sequence() -> tuple[World, list[Handle]]:
    """A sequence in slot 2, with a neighbour in slot 0 and a hole in slot 1."""
    world = World()
    for slot in (0, 1, 2):
        world.admit(slot)
    world.step({0: Feed((1, 2, 3)), 1: Feed((4,)), 2: Feed(PROMPT)})
    world.release(1)
    return world, handles(world.caches, 2)


def round_of(world: World, tokens: tuple[int, ...] = DRAFTS) -> Batch:
    return Batch([Span(2, len(world.tokens[2]), len(tokens))])


def begun(world: World, batch: Batch | None = None) -> tuple[SpeculativeLayers, Transaction]:
    batch = batch or round_of(world)
    world.caches.prepare(batch)
    return begin_speculation(world.caches, batch)


def isolated(world: World, rows: int = len(DRAFTS)) -> SpeculativeLayers:
    return begin_isolated_speculation(world.caches, 2, world.caches.offset(2), rows)


def forward(
    world: World, layers: SpeculativeLayers, tokens: tuple[int, ...] = DRAFTS
) -> list[Floats]:
    """A target forward of `tokens` over the layers, compared with plain attention."""
    batch, feeds = round_of(world, tokens), {2: Feed(tokens, kept=0)}
    outputs = []
    world.rng = np.random.default_rng(5)  # the same queries each time
    for layer, store in enumerate(layers.stores):
        history = store.update(batch, *world.packed(layer, batch, feeds))
        outputs.append(world.compare(layer, batch, feeds, history, trimmed=False))
    return outputs


def live_bits(world: World) -> list[bytes]:
    return [np.array(a).tobytes() for a in world.caches.arrays]


@pytest.mark.parametrize("n", range(-1, len(DRAFTS) + 2))
def test_commit_keeps_exactly_the_first_n_new_tokens_clamped_to_what_was_written(n: int) -> None:
    world, caches = sequence()
    layers, transaction = begun(world)
    forward(world, layers)
    transaction.commit(2, n)
    world.tokens[2] += DRAFTS[: max(0, n)]
    for layer, cache in enumerate(caches):
        held = cache.snapshot(len(PROMPT) - WINDOW)
        assert cache.offset == len(world.tokens[2])
        assert held is not None
        world.check_range(layer, held, world.tokens[2])


def test_writes_of_the_forward_move_no_live_offset_and_damage_no_live_state() -> None:
    world, caches = sequence()
    forward(world, begun(world)[0])
    assert [cache.offset for cache in caches] == [len(PROMPT)] * len(caches)
    world.floors[2] = len(PROMPT) + len(DRAFTS) - world.ring
    world.check_content(0)
    world.check_content(2)
    world.check_view([0, 2], WINDOW + 1)


def test_commit_0_leaves_everything_as_before() -> None:
    """The sequence goes on exactly as one that never speculated: S7."""
    outputs = []
    for speculates in (False, True):
        world, _ = sequence()
        if speculates:
            layers, transaction = begun(world)
            forward(world, layers)
            transaction.commit(2, 0)
            world.floors[2] = max(world.floors[2], len(PROMPT) + len(DRAFTS) - world.ring)
        world.check_view([2], WINDOW + 1)
        world.rng = np.random.default_rng(6)
        outputs.append(world.step({2: Feed((60,), kept=1), 0: Feed((61, 62), kept=1)}))
        world.check_content(2)
    for plain, after in zip(*outputs, strict=True):
        np.testing.assert_array_equal(plain, after)


def test_each_sequence_of_a_batch_commits_by_itself() -> None:
    """Rows that keep all, some and nothing, and a slice, in one forward."""
    world, _ = sequence()
    world.admit(3)
    feeds = {2: Feed(DRAFTS, kept=1), 0: Feed((5, 6), kept=2), 3: Feed((8, 9, 10))}
    batch = world.batch(feeds)
    layers, transaction = begun(world, batch)
    for layer, store in enumerate(layers.stores):
        store.update(batch, *world.packed(layer, batch, feeds))
    for slot, kept in ((0, 2), (3, 3), (2, 1)):
        before = world.caches.offset(slot)
        transaction.commit(slot, kept)
        assert world.caches.offset(slot) == before + kept
        written = before + len(feeds[slot].tokens)
        world.tokens[slot] += feeds[slot].tokens[:kept]
        world.floors[slot] = max(world.floors[slot], written - world.ring)
    for slot in feeds:
        world.check_content(slot)


def test_a_forward_that_never_ran_commits_nothing() -> None:
    world, _ = sequence()
    _, transaction = begun(world)
    before = live_bits(world)
    transaction.commit(2, 3)
    assert live_bits(world) == before
    world.check_content(2)


def test_a_forward_that_failed_halfway_commits_nothing() -> None:
    world, caches = sequence()
    layers, transaction = begun(world)
    batch = round_of(world)
    layers.stores[0].update(batch, *world.packed(0, batch, {2: Feed(DRAFTS, kept=0)}))
    transaction.commit(2, 2)
    assert [cache.offset for cache in caches] == [len(PROMPT)] * len(caches)


def test_commit_happens_once_and_layers_serve_one_forward() -> None:
    world, _ = sequence()
    layers, transaction = begun(world)
    forward(world, layers)
    with pytest.raises(AssertionError, match="one forward"):
        forward(world, layers)
    transaction.commit(2, 1)
    with pytest.raises(AssertionError, match="committed before"):
        transaction.commit(2, 1)
    with pytest.raises(AssertionError, match="over"):
        forward(world, layers)


def test_a_slice_is_never_taken_back() -> None:
    world, _ = sequence()
    feeds = {2: Feed((1, 2))}
    batch = world.batch(feeds)
    layers, transaction = begun(world, batch)
    for layer, store in enumerate(layers.stores):
        store.update(batch, *world.packed(layer, batch, feeds))
    with pytest.raises(AssertionError, match="1 of a slice of 2"):
        transaction.commit(2, 1)


def test_what_is_not_in_the_batch_has_nothing_to_commit() -> None:
    world, _ = sequence()
    _, transaction = begun(world)
    with pytest.raises(AssertionError, match="wrote nothing"):
        transaction.commit(0, 1)


def test_through_its_layers_nothing_can_be_stored_or_restored() -> None:
    """There is no other operation than the forward's one write."""
    offered = {name for name in vars(SpeculativeStore) if not name.startswith("_")}
    assert offered == {"update"}


def test_isolated_never_touches_live_state_and_gives_the_same_result() -> None:
    world, _ = sequence()
    copies, before = isolated(world), live_bits(world)
    replayed = forward(world, copies)
    assert live_bits(world) == before
    layers, transaction = begun(world)
    live = forward(world, layers)
    for theirs, ours in zip(live, replayed, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    transaction.commit(2, 3)


def test_isolated_replays_a_round_while_the_sequence_goes_on() -> None:
    world, _ = sequence()
    copies = isolated(world)
    world.step({2: Feed((50, 51, 52), kept=3), 0: Feed((53,), kept=1)})
    world.step({2: Feed((54, 55), kept=1)})
    del world.tokens[2][len(PROMPT) :]
    forward(world, copies, (50, 51, 52))


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_isolated_replays_a_round_that_was_committed(kept: int) -> None:
    """The ring still holds the window that the round began with, drafts or not."""
    world, _ = sequence()
    world.step({2: Feed((50, 51, 52), kept=kept)})
    copies = begin_isolated_speculation(world.caches, 2, len(PROMPT), kept)
    del world.tokens[2][len(PROMPT) :]
    forward(world, copies, (50, 51, 52)[:kept])


def test_isolated_is_laid_out_for_the_same_device() -> None:
    """Else `sapwood check` would replay a round in other kernels than it was served by."""
    kernels = Kernels("metal", large=True)
    world = World(kernels=kernels)
    world.admit(2)
    world.step({2: Feed(PROMPT)})
    batch, copies = round_of(world), isolated(world)
    fed = {2: Feed(DRAFTS, kept=0)}
    for layer, store in enumerate(copies.stores):
        assert store.update(batch, *world.packed(layer, batch, fed)).kernels == kernels


def test_isolated_refuses_a_window_that_is_overwritten() -> None:
    world, _ = sequence()
    for token in (50, 51, 52, 53, 54):
        world.step({2: Feed((token,), kept=1)})
    with pytest.raises(AssertionError, match="no longer holds"):
        begin_isolated_speculation(world.caches, 2, len(PROMPT), 1)


def test_isolated_of_an_empty_sequence_starts_at_0() -> None:
    world = World()
    world.admit(2)
    forward(world, isolated(world))
    mx.eval(world.caches.arrays)

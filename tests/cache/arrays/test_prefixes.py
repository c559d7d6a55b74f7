"""What slots hold by reference: read once for all who share it, and where the tree put it last."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from sapwood.cache.arrays import attention, prefixes
from sapwood.cache.arrays.folded import merged, split_partial, whole
from sapwood.cache.arrays.powers import weighted, weighted_partial
from sapwood.cache.arrays.ranges import EdgePayload
from sapwood.cache.arrays.speculation import begin_isolated_speculation
from sapwood.cache.attention_routes import CPU_KERNELS
from tests.cache.arrays.world import Feed, World, live_bytes

PREFIX = tuple(range(40, 64))
FULL = 1  # the world's full layer


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The queries of each call over something that is held by reference."""
    seen: list[int] = []
    over = attention.over_stretch

    def counted(kernels: object, queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
        seen.append(int(queries.shape[0]))
        return over(CPU_KERNELS, queries, keys, values)

    monkeypatch.setattr(prefixes, "over_stretch", counted)
    return seen


def stored(world: World, *edges: tuple[int, int]) -> list[EdgePayload]:
    """The prefix as the tree would have it."""
    world.admit(99)
    world.step({99: Feed(PREFIX)})
    path = [world.caches.capture(99, *edge) for edge in edges]
    world.release(99)
    return [payload for payload in path if payload is not None]


def test_all_who_share_an_edge_are_attended_in_one_call(calls: list[int]) -> None:
    world = World()
    path = stored(world, (0, 16), (16, 24))
    for slot in range(3):
        world.admit(slot, PREFIX, path, 24)
    world.admit(3, PREFIX, path, 16)
    world.admit(4, PREFIX, path)
    world.step({slot: Feed((slot, 1), kept=1) for slot in range(5)})
    assert calls == [8, 6], "rows of four, and of three"


def test_a_prompts_slice_attends_with_the_others(calls: list[int]) -> None:
    world = World()
    path = stored(world, (0, 24))
    for slot in range(2):
        world.admit(slot, PREFIX, path, 24)
    world.step({0: Feed((7,), kept=1), 1: Feed(tuple(range(9)))})
    assert calls == [10]


def test_what_is_held_by_reference_takes_no_room_of_its_own() -> None:
    world = World()
    path = stored(world, (0, 24))
    full = world.caches.full[0]
    world.admit(0, PREFIX, path)
    copied = sum(a.nbytes for a in full.arrays)
    world.release(0)
    world.admit(0, PREFIX, path, 24)
    assert sum(a.nbytes for a in full.arrays) == copied // 4, "a row of 8 tokens, not of 32"


def test_a_sealed_slot_gives_its_rows_back_and_goes_on() -> None:
    world = World()
    world.admit(0)
    world.step({0: Feed(PREFIX)})
    before = live_bytes(world.caches)
    payload = world.caches.capture(0, 0, 24)
    assert payload is not None
    world.caches.seal(0, [payload], 26)
    world.step({0: Feed((1, 2), kept=2)})
    world.check_content(0)
    world.check_prefix(0)
    assert live_bytes(world.caches) < before


def test_what_was_taken_is_not_read() -> None:
    world = World()
    path = stored(world, (0, 24))
    world.admit(0, PREFIX, path, 20)
    halves = path[0].split(10)
    world.caches.copies.make(0)
    with pytest.raises(AssertionError, match="was taken"):
        world.step({0: Feed((1,), kept=1)})
    world = World()
    path = stored(world, (0, 24))
    world.admit(0, PREFIX, path, 20)
    halves = path[0].split(10)
    world.caches.copies.make(0)
    world.caches.repoint(0, [half for half in halves if isinstance(half, EdgePayload)])
    world.step({0: Feed((1,), kept=1)})


def test_a_gap_or_less_than_was_said_is_our_mistake() -> None:
    world = World()
    path = stored(world, (0, 8), (8, 24))
    with pytest.raises(AssertionError):
        world.admit(0, PREFIX, path[1:], 24)
    world.admit(1, PREFIX, path, 20)
    with pytest.raises(AssertionError):
        world.caches.repoint(1, path[:1])


def test_an_isolated_replay_shares_what_is_held_by_reference() -> None:
    world = World()
    world.admit(0, PREFIX, stored(world, (0, 24)), 20)
    layers = begin_isolated_speculation(world.caches, 0, 24, 2)
    batch = world.batch({0: Feed((3, 4), kept=0)})
    store = layers.stores[FULL]
    history = store.update(batch, *world.packed(FULL, batch, {0: Feed((3, 4), kept=0)}))
    world.compare(FULL, batch, {0: Feed((3, 4), kept=0)}, history, False)
    assert world.caches.offset(0) == 24


def test_parts_over_disjoint_keys_are_attention_over_all_of_them() -> None:
    scores = mx.random.normal((2, 5, 60), key=mx.random.key(0)) * 30
    values = mx.random.normal((2, 60, 8), key=mx.random.key(1))
    cuts = [(0, 1), (1, 40), (40, 60)]
    parts = [split_partial(weighted_partial(scores[..., a:b], values[:, a:b])) for a, b in cuts]
    joined = whole(merged(merged(parts[2], parts[0]), parts[1]))
    np.testing.assert_allclose(np.array(joined), np.array(weighted(scores, values)), atol=1e-6)


def test_a_part_that_sees_nothing_says_nothing() -> None:
    """A row right behind its prefix holds no key yet; its scores are the dtype's least."""
    scores = mx.random.normal((1, 3, 9), key=mx.random.key(0))
    values = mx.random.normal((1, 9, 4), key=mx.random.key(1))
    hidden = mx.full(scores.shape, mx.finfo(mx.float32).min)
    part = split_partial(weighted_partial(scores, values))
    none = split_partial(weighted_partial(hidden, values * 1e30))
    for joined in (merged(part, none), merged(none, part)):
        assert np.array_equal(np.array(whole(joined)), np.array(whole(part)))

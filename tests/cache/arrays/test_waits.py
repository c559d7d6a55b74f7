"""How often the host waits for the device while K/V moves: a round trip each, for every client."""

from __future__ import annotations

import mlx.core as mx
import pytest

from sapwood.cache.arrays.live_caches import LayerShape, LiveCaches
from sapwood.cache.arrays.ranges import EdgePayload
from sapwood.cache.geometry import moved_bytes
from tests.cache.arrays.world import Feed, World, live_bytes

# As many layers as the largest family has, in its order: 10 full ones, 50 that slide.
SHAPES = tuple(LayerShape(i % 6 != 5, 1, 8) for i in range(60))
PROMPT = tuple(range(40))
SCALARS_BYTES = 16 << 10


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of arrays of every evaluation that somebody waits for, in order."""
    counts: list[int] = []
    evaluate = mx.eval

    def counting(*arrays: object) -> None:
        counts.append(len(arrays))
        evaluate(*arrays)

    monkeypatch.setattr(mx, "eval", counting)
    return counts


def stored(world: World) -> list[EdgePayload]:
    """A path of three edges, out of a slot that is free again."""
    world.admit(9)
    world.step({9: Feed(PROMPT)})
    edges = [world.caches.capture(9, a, b) for a, b in ((0, 10), (10, 33), (33, 40))]
    world.release(9)
    assert None not in edges
    return [edge for edge in edges if edge is not None]


def prepare(world: World, feeds: dict[int, Feed]) -> None:
    """What a step does before its forward."""
    world.caches.prepare(world.batch(feeds))


def test_an_admission_waits_four_times_at_most(waits: list[int]) -> None:
    world = World(SHAPES)
    path = stored(world)
    for slot in range(3):  # into pools that are there, and that grow for it
        waits.clear()
        world.admit(slot, PROMPT, path)
        prepare(world, {slot: Feed((1, 2, 3))})
        assert len(waits) <= 4, f"{len(waits)} waits for slot {slot}"
        world.step({slot: Feed((1, 2, 3))})  # compared with attention over its own tokens
        world.check_content(slot)


def test_a_cold_admission_and_its_first_slice_wait_four_times_at_most(waits: list[int]) -> None:
    world = World(SHAPES)
    world.admit(0)
    world.step({0: Feed((1, 2, 3))})
    waits.clear()
    world.admit(1)
    prepare(world, {1: Feed(PROMPT)})  # which needs a larger row than the one it came with
    assert 0 < len(waits) <= 4


def test_two_admissions_in_a_plan_wait_four_times_each(waits: list[int]) -> None:
    world = World(SHAPES)
    path = stored(world)
    waits.clear()
    world.admit(0, PROMPT, path)
    world.admit(1, PROMPT, path)
    prepare(world, {0: Feed((1,)), 1: Feed((2,))})
    assert len(waits) <= 8
    world.step({0: Feed((1,)), 1: Feed((2,))})
    world.check_content(0)
    world.check_content(1)


def test_a_capture_waits_once_and_a_step_that_moves_nothing_never(waits: list[int]) -> None:
    world = World(SHAPES)
    world.admit(0)
    world.step({0: Feed(PROMPT)})
    waits.clear()
    assert world.caches.capture(0, 0, 40) is not None
    assert len(waits) == 1
    prepare(world, {0: Feed((1,), kept=1)})
    assert len(waits) == 1


def test_rows_are_packed_in_four_waits_at_most(waits: list[int]) -> None:
    world = World(SHAPES)
    for slot in range(6):
        world.admit(slot)
        world.step({slot: Feed((slot, 2, 3))})
    for slot in range(5):
        world.release(slot)
    waits.clear()
    world.caches.pack()
    prepare(world, {5: Feed((1,), kept=1)})
    assert 0 < len(waits) <= 4
    world.step({5: Feed((1,), kept=1)})
    world.check_content(5)


def test_m1_pools_that_grow_take_what_is_reserved_for_it() -> None:
    """A fifth slot comes to four: beside its own rows, a few groups' pools exist twice."""
    shapes = [LayerShape(i % 6 != 5, 1, 64) for i in range(12)]
    caches = LiveCaches(shapes, 1000, 3, mx.float32)
    for slot in range(4):
        caches.reserve(slot, 2000)
        caches.settle()
    held = live_bytes(caches)
    mx.synchronize()
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    caches.reserve(4, 2000)
    caches.settle()
    mx.synchronize()
    now = live_bytes(caches)
    reserved = sum(
        moved_bytes(sum(a.nbytes for store in stores for a in store.arrays), len(stores))
        for stores in (caches.full, caches.sliding)
    )
    taken = mx.get_peak_memory() - before
    assert now - held < taken <= now - held + reserved + SCALARS_BYTES
    assert reserved < now / 2


def test_t1_an_edge_of_any_model_is_two_buffers() -> None:
    """A device counts its buffers: 20,000 nodes are to stay under a fifth of Metal's 499,000."""
    world = World(SHAPES)
    edges = stored(world)
    first, second = edges[0].merge(edges[1]), edges[2]
    halves = first.split(20)
    for edge in (*halves, second):
        assert isinstance(edge, EdgePayload)
        assert len(edge.arrays) <= 2
        world.check_payload(edge, PROMPT)

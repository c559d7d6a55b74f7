"""No pool reaches 2^31 elements: kernels that count in 32 bits go wrong there."""

from __future__ import annotations

import mlx.core as mx
import pytest

from bench.families import FAMILIES, Family
from sapwood.cache.arrays import live_caches
from sapwood.cache.arrays.live_caches import LiveCaches
from tests.cache.arrays.test_released_shapes import shapes
from tests.cache.arrays.world import Feed, World

CONTEXT, SLOTS = 262_144, 40
PROMPT = tuple(range(12))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_no_class_of_a_released_shape_has_so_many_rows(family: Family) -> None:
    """The rows given out for forty of the longest contexts; no array is made."""
    caches = LiveCaches(shapes(family), family.window, 9, mx.bfloat16)
    for placement in (caches.rows, caches.rings):
        placement.reserve([(slot, CONTEXT) for slot in range(SLOTS)])
    classes = set()
    for store in caches.stores:
        pools = store.pools
        for place in pools.placement.places.values():
            rows = pools.placement.rows(place.capacity)
            assert rows * place.capacity * pools.kv_heads * pools.head_dim < 1 << 31
            classes.add(place.capacity)
    assert len(classes) > 2 or family.full_kv_heads == 1, "no class was ever full"


def test_rows_of_sibling_classes_compute_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """C1, C4: full rows and rings, a few to a pool, fed, read, captured and released."""
    monkeypatch.setattr(live_caches, "ARRAY_ELEMENTS_MAX", 2 * 16 * 16)
    world = World()
    for slot in range(5):
        world.admit(slot)
    for length in (7, 3, 2):
        world.step({slot: Feed(PROMPT[:length]) for slot in range(5)})
    world.step({slot: Feed((1, 2, 3), kept=2) for slot in range(5)})
    for store in world.caches.stores:
        assert len(store.pools.by_capacity) > 1
        assert all(keys.size <= 2 * 16 * 16 for keys, _ in store.pools.by_capacity.values())
    held = world.caches.capture(4, 0, 14)
    assert held is not None
    world.release(0)
    world.check_view([1, 2, 3, 4], 6)
    for slot in range(1, 5):
        world.check_content(slot)
        world.release(slot)

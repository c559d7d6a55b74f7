"""One sequence in a world of one layer, for tests of a single Cache."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from sapwood.cache.arrays.live_caches import LayerShape
from sapwood.cache.arrays.ranges import LayerRange, Range, stack_layers
from tests.cache.arrays.handle import Handle, handles
from tests.cache.arrays.world import Feed, World, code

SLIDING, FULL = (LayerShape(True, 2, 8),), (LayerShape(False, 2, 8),)
TOKENS = tuple(int(t) for t in np.random.default_rng(1).integers(0, 50, 60))


def live(shapes: tuple[LayerShape, ...], count: int, slot: int = 0) -> tuple[World, Handle]:
    """A one-layer world whose slot holds TOKENS[:count]."""
    world = World(shapes)
    world.admit(slot)
    if count:
        world.step({slot: Feed(TOKENS[:count])})
    return world, handles(world.caches, slot)[0]


def stored(
    shapes: tuple[LayerShape, ...], start: int, end: int, tokens: tuple[int, ...] = TOKENS
) -> Range:
    keys, values = code(0, shapes[0], tokens[:end])
    layer = LayerRange(start, end, mx.array(keys[:, start:]), mx.array(values[:, start:]))
    made = stack_layers([layer])
    assert made is not None
    return made


def bits(cache: Handle) -> tuple[int, list[bytes]]:
    """The live content, to see that it has not changed."""
    held = cache.store.snapshot(cache.slot, 0)
    arrays = [] if held is None else [held.keys, held.values]
    return cache.offset, [np.array(a).tobytes() for a in arrays]


def holds(world: World, cache: Handle, start: int, end: int) -> None:
    """The cache holds exactly TOKENS[start:end] at [start, end)."""
    assert cache.offset == end
    held = cache.snapshot(0)
    assert held is not None
    assert (held.start, held.end) == (start, end)
    world.check_range(0, held, TOKENS[:end])


BOTH = pytest.mark.parametrize("shapes", [SLIDING, FULL], ids=["sliding", "full"])

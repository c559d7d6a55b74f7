"""Strict attention: right, and the same bits for a row in whatever layout its keys are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

import mlx.core as mx
import numpy as np
import pytest

from sapwood.cache.arrays.attention import History
from sapwood.cache.arrays.batch import Batch
from sapwood.cache.arrays.ranges import EdgePayload, Portion, Range
from sapwood.cache.arrays.stretches import stretches
from sapwood.cache.arrays.strict_attention import touched_tiles
from sapwood.cache.arrays.tiles import nothing, over_tree
from sapwood.cache.attention_routes import Kernels
from tests.cache.arrays.world import ROUND, Feed, Floats, World

TILE = 4
STORY = tuple(Random(3).choices(range(10), k=41))


class StrictWorld(World):
    """Queries are a code of layer and position; `bits` has each one's attention, the last time."""

    def __init__(self) -> None:
        super().__init__(window=8, kernels=Kernels("cpu", tile_tokens=TILE))
        self.bits: dict[tuple[int, int, int], bytes] = {}

    def compare(
        self, layer: int, batch: Batch, feeds: Mapping[int, Feed], history: History, trimmed: bool
    ) -> Floats:
        shape = self.shapes[layer]
        positions = batch.positions_host
        queries = np.stack([
            np.random.default_rng((layer, p)).normal(size=(self.heads, shape.head_dim))
            for p in positions
        ]).astype(np.float32)  # fmt: skip
        out = np.array(history.attend(mx.array(queries), trimmed))
        expected = self.reference(layer, batch, feeds, queries)
        np.testing.assert_allclose(out, expected, atol=1e-5)
        for span, first in zip(batch.spans, batch.firsts, strict=True):
            for row in range(span.length):
                self.bits[span.slot, layer, span.start + row] = out[first + row].tobytes()
        return out

    def of(self, slot: int) -> list[bytes]:
        """All layers at all positions of the story but the first 30."""
        layers = range(len(self.shapes))
        return [self.bits[slot, layer, p] for layer in layers for p in range(30, len(STORY))]

    def stored(self, *edges: tuple[int, int]) -> list[EdgePayload]:
        self.admit(99)
        self.step({99: Feed(STORY[: edges[-1][1]])})
        path = [self.caches.capture(99, *edge) for edge in edges]
        self.release(99)
        return [payload for payload in path if payload is not None]


@pytest.fixture(scope="module")
def due() -> list[bytes]:
    """Alone, in one slice."""
    world = StrictWorld()
    world.admit(5)
    world.step({5: Feed(STORY)})
    return world.of(5)


def test_slices_and_rounds_do_not_matter(due: list[bytes]) -> None:
    for lengths in ((13, 1, 27), (30,) + (1,) * 11, (7, 20, 2, 3, 3, 3, 3)):
        world = StrictWorld()
        world.admit(0)
        at = 0
        for length in lengths:
            fed = STORY[at : at + length]
            world.step({0: Feed(fed, len(fed) if length <= ROUND else None)})
            at += length
        assert world.of(0) == due, lengths


def test_drafts_that_were_taken_back_do_not_matter(due: list[bytes]) -> None:
    world = StrictWorld()
    world.admit(0)
    world.step({0: Feed(STORY[:30])})
    for at in range(30, len(STORY)):
        world.step({0: Feed((STORY[at], 9, 9), kept=1)})
    assert world.of(0) == due


def test_company_and_the_row_of_the_pool_do_not_matter(due: list[bytes]) -> None:
    world = StrictWorld()
    for slot, length in ((0, 3), (1, 70), (2, 9)):
        world.admit(slot)
        world.step({slot: Feed(tuple(range(length)))})
    world.release(1)
    world.admit(3)
    world.admit(4)
    world.step({0: Feed((1,), kept=1), 3: Feed(STORY[:31]), 4: Feed((5,) * 17)})
    for at in range(31, len(STORY), 2):
        fed = STORY[at : at + 2]
        world.step({2: Feed((7, 7, 7), kept=2), 3: Feed(fed, len(fed)), 0: Feed((1,), kept=1)})
    assert world.of(3) == due


@pytest.mark.parametrize("edges", [[(0, 30)], [(0, 11), (11, 13), (13, 14), (14, 30)]])
@pytest.mark.parametrize("base", [0, 8, 12, 28])
def test_what_is_held_by_reference_does_not_matter(
    due: list[bytes], edges: Sequence[tuple[int, int]], base: int
) -> None:
    world = StrictWorld()
    path = world.stored(*edges)
    for slot, held in ((1, base), (2, 0), (3, 16)):
        world.admit(slot, STORY[:30], path, held)
    for at in range(30, len(STORY)):
        feeds = {slot: Feed(STORY[at : at + 1], kept=1) for slot in (1, 2, 3)}
        world.step(feeds)
    assert world.of(1) == world.of(2) == world.of(3) == due


def test_sealing_gives_whole_tiles_away_and_keeps_the_rest(due: list[bytes]) -> None:
    world = StrictWorld()
    world.admit(0)
    world.step({0: Feed(STORY[:30])})
    payload = world.caches.capture(0, 0, 30)
    assert payload is not None
    world.caches.seal(0, [payload], 30)
    world.caches.settle()
    assert world.caches.rows.base(0) == 28
    world.check_content(0)
    world.step({0: Feed(STORY[30:])})
    assert world.of(0) == due


def held(*edges: tuple[int, int]) -> list[Portion]:
    return [(Range(a, b, mx.zeros((2, b - a, 1)), (1,)), a, b) for a, b in edges]


def test_stretches_are_whole_tiles_of_one_range_or_a_tile_of_several() -> None:
    portions = held((0, 9), (9, 10), (10, 11), (11, 24))
    found = list(stretches(portions, 4))
    assert [(s.start, s.end, len(s.pieces)) for s in found] == [(0, 8, 1), (8, 12, 4), (12, 24, 1)]
    shorter = [(portions[0][0], 0, 8)]
    assert [s.key for s in stretches(shorter, 4)] == [found[0].key], "whoever shares it"
    assert [(s.start, s.end) for s in stretches(held((0, 3), (3, 4), (4, 8)), 4)] == [
        (0, 4), (4, 8),
    ]  # fmt: skip


def test_how_many_tiles_a_window_touches() -> None:
    for reach in range(1, 14):
        seen = {len({p // 4 for p in range(end - reach, end)}) for end in range(20, 40)}
        assert touched_tiles(reach, 4) == max(seen)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 8])
def test_leaves_of_weight_0_change_no_bit(count: int) -> None:
    rng = np.random.default_rng(count)
    leaves = mx.array(rng.normal(size=(2, count, 3, 6)).astype(np.float32))
    none = mx.broadcast_to(nothing(3, 4), (2, 4, 3, 6))

    def joined(parts: Sequence[mx.array]) -> list[bytes]:
        array = mx.concatenate(list(parts), axis=1)
        return [
            np.array(each).tobytes()
            for each in over_tree((array[..., :4], array[..., 4:5], array[..., 5:]))
        ]

    due = joined([leaves])
    assert all(joined([leaves, none[:, :more]]) == due for more in range(1, 5))

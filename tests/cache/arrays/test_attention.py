"""Packed attention over rings, capacity classes and prefill slices: C4, C5, and the ring's mask."""

from __future__ import annotations

from unittest import mock

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sapwood.cache.arrays import folded, powers
from sapwood.cache.arrays.attention import Grid, over_slice, position_mask, slice_mask
from sapwood.cache.arrays.batch import Batch, Span
from sapwood.cache.arrays.live_caches import LayerShape
from sapwood.cache.arrays.placement import Placement
from sapwood.cache.arrays.ranges import EdgePayload, stack_layers
from sapwood.cache.attention_routes import CPU_KERNELS, Kernels
from tests.cache.arrays.poison import poison
from tests.cache.arrays.world import HEADS, ROUND, SHAPES, WINDOW, Feed, Floats, World, attention
from tests.quick import few_quick

GPU = Kernels("metal")
# With 16 heads: two queries a call, two queries a call, folded.
GPU_SHAPES = (LayerShape(True, 1, 64), LayerShape(False, 1, 64), LayerShape(True, 2, 16))


@st.composite
def rings(draw: st.DrawFn) -> tuple[int, int, list[int], Span]:
    """(window, ring, the position that each entry really holds or -1, the span being attended)."""
    window, deepest = draw(st.integers(2, 6)), draw(st.integers(1, 4))
    ring = window + deepest + 1
    entries, offset = [-1] * ring, 0
    for _ in range(draw(st.integers(1, 12))):
        rows = draw(st.integers(1, deepest))
        for position in range(offset, offset + rows):
            entries[position % ring] = position
        span = Span(0, offset, rows)
        offset += draw(st.integers(0, rows))
    return window, ring, entries, span


@given(case=rings())
@settings(max_examples=300)
def test_a_ring_shows_exactly_the_logical_window(case: tuple[int, int, list[int], Span]) -> None:
    """Whatever order the ring has and whatever deeper rounds left in it, a query at p sees the
    entries that hold (p - window, p]: so any mask over the ordered window is the same one here."""
    window, ring, entries, span = case
    placement = Placement(lambda _: ring)
    placement.reserve([(0, 1)])
    (grid,) = Grid.classes(Batch([span]), placement, None)
    for places_on_host in (0, 1 << 14):
        with mock.patch("sapwood.cache.arrays.attention.MASK_ON_HOST", places_on_host):
            mask = np.array(position_mask(grid, ring, window, None))[0, 0]
        for row, position in enumerate(range(span.start, span.end)):
            seen = sorted(entries[r] for r in np.flatnonzero(mask[row]))
            assert seen == list(range(max(0, position + 1 - window), position + 1))


@given(case=rings(), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_attention_over_a_ring_equals_attention_over_the_ordered_window(
    case: tuple[int, int, list[int], Span], seed: int
) -> None:
    window, ring, entries, span = case
    rng = np.random.default_rng(seed)
    by_position = rng.normal(size=(2, 2, max(entries) + 1, 8)).astype(np.float32)
    keys, values = (a[:, np.array(entries)] for a in by_position)
    placement = Placement(lambda _: ring)
    placement.reserve([(0, 1)])
    (grid,) = Grid.classes(Batch([span]), placement, None)
    queries = rng.normal(size=(span.length, HEADS, 8)).astype(np.float32)
    out = mx.fast.scaled_dot_product_attention(
        mx.array(queries.transpose(1, 0, 2)[None]),
        mx.array(keys[None, :, : grid.length]),
        mx.array(values[None, :, : grid.length]),
        scale=1.0,
        mask=position_mask(grid, ring, window, None),
    )
    for row, position in enumerate(range(span.start, span.end)):
        seen = slice(max(0, position + 1 - window), position + 1)
        expected = attention(queries[row], by_position[0][:, seen], by_position[1][:, seen])
        np.testing.assert_allclose(np.array(out)[0, :, row], expected, atol=1e-5)


def feeds_of(world: World, rng: np.random.Generator) -> dict[int, Feed]:
    """A random step: about two thirds of the sequences, in random packed order."""
    feeds: dict[int, Feed] = {}
    for slot in rng.permutation(sorted(world.tokens)).tolist():
        if rng.random() < 0.35 and feeds:
            continue
        prefill = rng.random() < 0.3 or not world.tokens[slot]
        count = int(rng.integers(1, 30 if prefill else ROUND + 1))
        kept = None if prefill else int(rng.integers(0, count + 1))
        tokens = tuple(rng.integers(0, 50, count).tolist())
        feeds[slot] = Feed(tokens, kept, bool(rng.random() < 0.5))
    return feeds


def crowd(seed: int, poisoned: bool = False, on_gpu: bool = False) -> list[Floats]:
    """Sixteen sequences coming and going for 25 steps; every output, layer by layer.

    World.step compares all of them with each sequence's own attention. on_gpu: laid out as there,
    in cut rounds and folded groups. Many of them hold a part of one prefix by reference.
    """
    rng, outputs = np.random.default_rng(seed), []
    world = World(GPU_SHAPES, seed=seed, kernels=GPU, heads=16) if on_gpu else World(seed=seed)
    prefix = tuple(rng.integers(0, 50, 30).tolist())
    world.admit(99)
    world.step({99: Feed(prefix)})
    (full,) = world.caches.full
    edges = [(edge, stack_layers([full.snapshot(99, *edge)])) for edge in ((0, 12), (12, 30))]
    path = [EdgePayload(*edge, held, None) for edge, held in edges]
    mx.eval([a for payload in path for a in payload.arrays])
    world.release(99)
    for step in range(25):
        for slot in range(16):
            here = slot in world.tokens
            if rng.random() < (0.1 if here else 0.3):
                if here:
                    world.release(slot)
                elif rng.random() < 0.3:
                    world.admit(slot)
                else:
                    world.admit(slot)
                    world.step({slot: Feed(prefix[: int(rng.choice([7, 12, 25, 30]))])})
                    world.caches.seal(slot, path, len(prefix))
        # Now and then most leave, so that owners' rows have to be gathered from among holes.
        if step == 15:
            for slot in sorted(world.tokens)[:-2]:
                world.release(slot)
        if not world.tokens:
            world.admit(3)
        if poisoned:
            assert poison(world.caches, WINDOW + 1) > 0
        outputs += world.step(feeds_of(world, rng), [None, 1, 2][step % 3])
        if poisoned:
            poison(world.caches, WINDOW + 1)
        held = [slot for slot, tokens in world.tokens.items() if tokens]
        if held:
            world.check_view(held, WINDOW + step % 2)
    return outputs


@pytest.mark.parametrize("on_gpu", few_quick([False, True], True))
@pytest.mark.parametrize("seed", few_quick(range(4), 0))
def test_c4_packed_rows_equal_each_sequences_own_attention(seed: int, on_gpu: bool) -> None:
    assert crowd(seed, on_gpu=on_gpu)


@pytest.mark.parametrize("on_gpu", few_quick([False, True], True))
@pytest.mark.parametrize("seed", few_quick(range(2), 0))
def test_c5_poison_changes_no_bit_of_any_output(seed: int, on_gpu: bool) -> None:
    """vLLM GHSA-v97p: stale entries of a batch slot reached another user's attention."""
    both = (crowd(seed, poisoned, on_gpu) for poisoned in (False, True))
    for clean, poisoned in zip(*both, strict=True):
        assert clean.tobytes() == poisoned.tobytes()


def test_c5_poison_reaches_what_a_wrong_mask_would_show() -> None:
    """The poison is live: one position further, and it is in the output."""
    world = World()
    world.admit(0)
    world.step({0: Feed(tuple(range(20)))})
    poison(world.caches, keep=WINDOW)
    batch = Batch([Span(0, 19, 1)])
    queries = mx.zeros((1, HEADS, SHAPES[0].head_dim))
    store = world.caches.sliding[0]
    assert not mx.isnan(store.view(batch, WINDOW).attend(queries)).any().item()
    assert mx.isnan(store.view(batch, WINDOW + 1).attend(queries)).any().item()


def test_rows_among_many_holes_are_gathered_and_among_few_read_along() -> None:
    placement = Placement(lambda _: 8)
    placement.reserve((slot, 1) for slot in range(8))
    for slots, gathered in (((0, 1, 2), False), ((1, 3), False), ((7,), False), ((1, 5), True)):
        batch = Batch([Span(slot, 3, 1) for slot in slots])
        (grid,) = Grid.classes(batch, placement, None)
        assert (grid.rows is not None) == gathered
        assert grid.n == (len(slots) if gathered else max(slots) + 1 - min(slots))


def test_rows_in_pool_order_need_no_gather_and_others_do() -> None:
    placement = Placement(lambda _: 8)
    placement.reserve((slot, 1) for slot in range(4))
    for spans, first in (
        ([Span(0, 3, 2), Span(1, 5, 2)], 0),
        ([Span(1, 3, 2), Span(0, 5, 2)], None),
        ([Span(0, 3, 2), Span(1, 5, 1)], None),
    ):
        (grid,) = Grid.classes(Batch(spans), placement, None)
        assert grid.first == first


@pytest.mark.parametrize("reach", [None, 7])
@pytest.mark.parametrize("past", [0, 5, 40])
def test_a_slice_is_the_same_in_tiles(
    reach: int | None, past: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles bound the scores that exist at once; they change no row."""
    queries = mx.random.normal((33, 4, 8), key=mx.random.key(0))
    keys, values = (
        mx.random.normal((1, 2, past + 33, 8), key=mx.random.key(seed)) for seed in (1, 2)
    )
    mask = slice_mask(33, past + 33, reach)
    whole = np.array(over_slice(CPU_KERNELS, queries, keys, values, mask))
    sizes = []
    of_all = powers.weighted

    def counted(scores: mx.array, values: mx.array) -> mx.array:
        sizes.append(scores.shape[2] // 2)  # heads of a group
        return of_all(scores, values)

    monkeypatch.setattr(Kernels, "slice_scores_max", 1)
    monkeypatch.setattr(folded, "weighted", counted)
    np.testing.assert_allclose(
        np.array(over_slice(CPU_KERNELS, queries, keys, values, mask)), whole, atol=1e-6
    )
    assert sizes == [8, 8, 8, 8, 1]

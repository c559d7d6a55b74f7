"""Bytes: writes happen in place, pools follow the sequences, nothing is left behind (C6, M3)."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from sapwood.cache.arrays.attention import History
from sapwood.cache.arrays.batch import Batch, Span
from sapwood.cache.arrays.live_caches import LayerShape, LiveCaches
from sapwood.cache.arrays.ranges import EdgePayload, LayerRange, stack_layers
from sapwood.cache.arrays.speculation import begin_isolated_speculation
from sapwood.cache.geometry import tail_tokens
from tests.cache.arrays.world import Feed, World, live_bytes

SLOTS, ROWS, DIM = 8, 2048, 256
WINDOW = ROWS - 5
HELD = ROWS - 40  # so much that attention reads whole pools: a view of a part would be a copy of it
POOL_BYTES = SLOTS * ROWS * DIM * 4  # keys or values of one layer


def big() -> LiveCaches:
    """Eight sequences in a ring layer and a full layer of long rows."""
    caches = LiveCaches(
        [LayerShape(True, 1, DIM), LayerShape(False, 1, DIM)], WINDOW, 4, mx.float32
    )
    stored = mx.ones((1, HELD, DIM))
    layer = LayerRange(0, HELD, stored, stored)
    path = EdgePayload(0, HELD, stack_layers([layer]), stack_layers([layer]))
    for slot in range(SLOTS):
        caches.restore(slot, [path], HELD)
    mx.eval(caches.arrays)
    assert pool_bytes(caches) == 4 * POOL_BYTES
    return caches


def pool_bytes(caches: LiveCaches) -> int:
    return sum(a.nbytes for store in caches.stores for a in store.pools.arrays)


def write(caches: LiveCaches, batch: Batch, shift: mx.array | float = 0.0) -> None:
    """A forward's worth of K/V into every layer, attended and evaluated."""
    caches.prepare(batch)
    fresh = mx.ones((batch.tokens, 1, DIM)) + shift
    outputs = [
        store.update(batch, fresh, fresh).attend(mx.ones((batch.tokens, 2, DIM)))
        for store in caches.stores
    ]
    mx.eval(caches.arrays, outputs)


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that `work` needed beyond what was held before it."""
    mx.synchronize()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    work()
    mx.synchronize()
    return max(0, mx.get_peak_memory() - before)


DECODE = Batch([Span(slot, HELD, 1 + slot % 4) for slot in range(SLOTS)])
PREFILL = Batch([], [Span(5, HELD, 24)])
MIXED = Batch([Span(slot, HELD, 4) for slot in range(SLOTS - 1)], [Span(7, HELD, 24)])
STEPS = pytest.mark.parametrize(
    "layout", [DECODE, PREFILL, MIXED], ids=["decode", "prefill", "mixed"]
)


def fresh_copy(layout: Batch) -> Batch:
    """Its own tables: a Batch is one step's."""
    return Batch(layout.decodes, layout.prefills)


@STEPS
def test_c6_a_write_copies_no_pool(layout: Batch) -> None:
    caches = big()
    assert peak_bytes(lambda: write(caches, fresh_copy(layout))) < POOL_BYTES


@STEPS
@pytest.mark.parametrize("layer", [0, 1])
def test_c6_a_view_that_is_held_would_be_noticed(layout: Batch, layer: int) -> None:
    caches = big()
    held = [a[1:] for a in caches.stores[layer].arrays[:2]]
    mx.eval(held)
    assert peak_bytes(lambda: write(caches, fresh_copy(layout))) >= POOL_BYTES


def drafted(caches: LiveCaches) -> tuple[list[History], mx.array]:
    """What a drafter does first: it attends to the newest K/V of the layers that it reads."""
    batch = Batch([Span(slot, HELD - 1, 1) for slot in range(SLOTS)])
    sliding, full = caches.sliding[0], caches.full[0]
    views: list[History] = [sliding.view(batch, WINDOW + 1), full.view(batch)]
    drafts = sum((view.attend(mx.ones((SLOTS, 2, DIM))).sum() for view in views), mx.array(0.0))
    return views, drafts


def test_c6_drafts_that_are_evaluated_before_the_target_writes_cost_no_copy() -> None:
    caches = big()

    def round_of() -> None:
        # The views may live on: they hold no arrays. What must be over is the reading, for a
        # pending read keeps a buffer from being written in place.
        views, drafts = drafted(caches)
        mx.eval(drafts)
        write(caches, fresh_copy(DECODE), drafts)
        assert len(views) == 2

    assert peak_bytes(round_of) < POOL_BYTES


def test_c6_captures_and_isolated_copies_leave_no_view_behind() -> None:
    caches = big()
    held = caches.capture(3, 0, HELD)
    copies = begin_isolated_speculation(caches, 3, HELD, 1)
    assert held is not None
    assert copies.stores
    assert peak_bytes(lambda: write(caches, fresh_copy(DECODE))) < POOL_BYTES


def test_m3_live_bytes_follow_the_sequences_and_end_at_the_baseline() -> None:
    mx.clear_cache()
    baseline = mx.get_active_memory()
    for _ in range(3):
        caches = big()
        for slot in range(SLOTS):
            assert live_bytes(caches) > 0
            caches.release(slot)
        assert live_bytes(caches) == 0
        assert mx.get_active_memory() - baseline < 1 << 16


def test_m3_pools_shrink_when_sequences_leave_and_the_last_row_stays() -> None:
    caches = big()
    for slot in range(SLOTS - 1):
        caches.release(slot)
    assert pool_bytes(caches) == 4 * POOL_BYTES
    caches.pack()
    write(caches, Batch([Span(SLOTS - 1, HELD, 1)]))
    assert pool_bytes(caches) == 4 * POOL_BYTES // SLOTS
    caches.commit(SLOTS - 1, HELD + 1)
    held = caches.capture(SLOTS - 1, 0, HELD + 1)
    assert held is not None
    assert held.full is not None
    np.testing.assert_array_equal(np.array(held.full.stack), np.ones((2, HELD + 1, DIM)))


def test_m3_a_sequence_that_leaves_as_another_comes_copies_no_pool() -> None:
    caches = big()

    def change() -> None:
        caches.release(2)
        caches.restore(2, (), 0)
        caches.reserve(2, ROWS)
        write(caches, Batch([Span(0, HELD, 1)], [Span(2, 0, 20)]))

    assert peak_bytes(change) < POOL_BYTES


def test_m3_growing_holds_one_pool_twice_and_not_all_of_them() -> None:
    caches = big()
    caches.restore(SLOTS, (), 0)
    grown = POOL_BYTES * (SLOTS + 1) // SLOTS

    def grow() -> None:
        caches.reserve(SLOTS, ROWS)
        caches.settle()

    assert peak_bytes(grow) <= 2 * grown + 4 * (grown - POOL_BYTES)


def test_c6_a_sequence_that_outgrows_its_pool_leaves_the_others_to_write_in_place() -> None:
    caches = LiveCaches([LayerShape(False, 1, DIM)], 2, 4, mx.float32)
    for slot in range(SLOTS):
        caches.restore(slot, (), 0)
        caches.reserve(slot, ROWS // 2)
    caches.settle()
    left = [a.nbytes for a in caches.arrays]
    assert left == [POOL_BYTES // 2] * 2

    def step() -> None:
        caches.reserve(3, ROWS)
        write(caches, Batch([Span(slot, 0, 2) for slot in range(SLOTS)]))

    row = 2 * ROWS * DIM * 4
    assert peak_bytes(step) - row < POOL_BYTES // 2


def test_m3_what_a_prefill_keeps_aside_goes_with_its_first_decoded_token() -> None:
    """W - 1 entries of every sliding layer, however long the slice was."""
    world = World()
    world.admit(0)
    world.step({0: Feed(tuple(range(20)))})
    aside = live_bytes(world.caches)
    world.step({0: Feed((1,), kept=1)})
    entries = sum(2 * s.kv_heads * s.head_dim * 4 for s in world.shapes if s.sliding)
    assert aside - live_bytes(world.caches) == (world.window - 1) * entries


def test_a_short_capture_of_a_long_row_copies_what_it_takes() -> None:
    """M2: at a reply's end a few tokens leave a slot that may hold a whole context."""
    caches = big()
    payloads: list[EdgePayload | None] = []
    peak = peak_bytes(lambda: payloads.append(caches.capture(3, HELD - 4, HELD)))
    assert payloads[0] is not None
    assert payloads[0].full_bytes == 2 * 4 * DIM * 4
    assert peak < POOL_BYTES // SLOTS // 4, peak


@pytest.mark.parametrize("window", [1, 2, 5])
def test_a_prompt_keeps_aside_what_its_next_slice_sees_and_no_more(window: int) -> None:
    world = World(window=window)
    world.admit(0)
    for length in (30, 1, 4):
        world.step({0: Feed(tuple(range(length)))})
        for store in world.caches.sliding:
            kept = [a.shape[2] for a in store.arrays[len(store.pools.arrays) :]]
            assert kept == [tail_tokens(window)] * 2 * (window > 1)
    world.release(0)

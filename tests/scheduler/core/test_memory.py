"""Bytes: promised before they are taken, given back to the last one, evicted before refusing."""

from __future__ import annotations

from dataclasses import replace

from sapwood.cache.prefix.ledger import Ledger
from sapwood.scheduler.events import Failed, Finished, Pinned
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.sampling import Sampling
from tests.fakes import FULL_BYTES, SLIDING_BYTES
from tests.scheduler.fake_device import toy_facts
from tests.scheduler.house import House, Stream, prompt

LIMITS = Limits(slots_max=2, prefill_tokens_max=16, share_tokens_min=8, draft_depth_max=8)
FACTS = toy_facts(depth_max=LIMITS.draft_depth_max)
TOKEN = FULL_BYTES + SLIDING_BYTES
ONE_WORKSPACE = (16 + 9) * FACTS.workspace_bytes_per_token


def budget(live_tokens: int, snapshot_bytes: int, slots: int = 1) -> int:
    """What `slots` sequences of `live_tokens` need, and `snapshot_bytes` for the tree."""
    live = FACTS.live_bytes(live_tokens) * slots
    return FACTS.weights_bytes + live + ONE_WORKSPACE + 9 * (slots - 1) + snapshot_bytes


def cached(stream: Stream) -> int:
    assert isinstance(stream.end, Finished), stream.end
    return stream.end.usage.cached_tokens


def test_what_is_reserved_covers_the_step_and_goes_back_with_the_slot() -> None:
    """M1, M2: worst-case live bytes and the transient of rows and slices, from admit to release."""
    house = House(limits=LIMITS)
    house.submit(prompt(20), 12, ignore_eos=True)
    house.submit(prompt(20, 1), 12, ignore_eos=True)
    house.step()
    view = house.ledger.view()
    assert view.live == 2 * FACTS.live_bytes(32)
    assert view.workspace == 16 + 2 * 9
    for plan in iter(house.step, None):
        assert plan.tokens * FACTS.workspace_bytes_per_token <= 16 + 2 * 9
    assert house.ledger.view().live == house.ledger.view().workspace == 0
    house.close()


def test_scores_of_slices_are_reserved_for_the_longest_sequence_that_lives() -> None:
    """M2: a small budget serves short requests, whatever a tile of scores may weigh at most."""
    facts = replace(FACTS, score_bytes_per_key=2, slice_score_bytes=16 * 50 * 2)
    room = facts.weights_bytes + facts.live_bytes(20) + 16 + 16 * 20 * 2 + 9 * (1 + 20 * 2)
    house = House(limits=LIMITS, facts=facts, budget_bytes=room)
    wants_more, fits = house.submit(prompt(12), 9), house.submit(prompt(12), 8)
    house.run()
    assert isinstance(wants_more.end, Failed)
    assert isinstance(fits.end, Finished)
    house.close()


def test_what_slices_need_shrinks_when_the_longest_sequence_leaves() -> None:
    facts = replace(FACTS, score_bytes_per_key=2, slice_score_bytes=16 * 50 * 2)
    house = House(limits=LIMITS, facts=facts)
    long = house.submit(prompt(90), 10, ignore_eos=True)
    short = house.submit(prompt(12, 1), 18, ignore_eos=True)
    house.step()
    rounds = 9 * (1 + 30 * 2)
    assert house.ledger.view().workspace == 16 + 16 * 50 * 2 + rounds + 9 * (1 + 100 * 2)
    house.cancel(long)
    house.step()
    assert short.end is None
    assert house.ledger.view().workspace == 16 + 16 * 30 * 2 + rounds
    house.run()
    assert house.ledger.view().workspace == 0
    house.close()


def test_a_slot_reserves_what_its_own_sampler_takes() -> None:
    """M2: a greedy row and one with a small top_k need next to nothing for it."""
    facts = replace(FACTS, wide_bytes_per_row=10, whole_bytes_per_row=100)
    light = ONE_WORKSPACE + facts.weights_bytes + facts.live_bytes(32)
    for sampling in (Sampling(), Sampling(1.0, top_k=64)):
        house = House(limits=LIMITS, facts=facts, budget_bytes=light)
        assert isinstance(_run(house, sampling), Finished)
        house.close()
    wide = (Sampling(1.0, top_k=65), Sampling(1.0, top_k=1024), Sampling(repetition_penalty=1.1))
    whole = (Sampling(1.0), Sampling(1.0, top_p=0.5), Sampling(1.0, top_k=1025))
    for sampling, needed in [(s, 9 * 10) for s in wide] + [(s, 9 * 100) for s in whole]:
        for spare, end in ((needed, Finished), (needed - 1, Failed)):
            house = House(limits=LIMITS, facts=facts, budget_bytes=light + spare)
            assert isinstance(_run(house, sampling), end)
            house.close()


def _run(house: House, sampling: Sampling) -> Finished | Failed | Pinned | None:
    stream = house.submit(prompt(20), 12, sampling=sampling)
    house.run()
    return stream.end


def test_snapshots_give_way_to_a_request() -> None:
    house = House(limits=LIMITS, budget_bytes=budget(64, 300))
    first = house.submit(prompt(20), 4)
    house.run()
    assert house.ledger.held("snapshots") > 0
    second = house.submit(prompt(60, 1), 4)
    house.run()
    assert cached(first) == cached(second) == 0
    assert sum(house.tree.evictions.values()) > 0
    house.close()


def test_a_slice_without_room_is_not_kept_and_the_end_of_the_reply_makes_up_for_it() -> None:
    """No room for a capture while the sequence lives: what fits is stored once its slot is free."""
    spare = 16 * TOKEN
    house = House(limits=LIMITS, budget_bytes=budget(64, spare))
    stream = house.submit(prompt(50), 10, ignore_eos=True)
    house.run()
    kept = [piece.capture for plan in house.plans for piece in plan.prefills]
    assert kept == [True, False, False, False]
    assert cached(stream) == 0
    house.close()


def test_a_prefix_that_stands_in_the_way_of_its_own_request_is_given_up() -> None:
    """L5: alone, a request is served even where its stored prefix leaves it no room to live."""
    house = House(limits=LIMITS, budget_bytes=budget(128, 0))
    first = house.submit(prompt(12), 4, ignore_eos=True)
    house.run()
    stored = house.tree.match(b"root", (*prompt(12), 5)).tokens
    assert stored > 0, "the smaller request left room to store something"
    second = house.submit(prompt(12) + prompt(88, 1), 28, ignore_eos=True)
    house.run()
    assert cached(first) == cached(second) == 0
    assert house.core.stats().prefix_recomputed_tokens["evicted"] == stored
    house.close()


def test_one_admission_does_not_evict_what_another_of_the_plan_restores() -> None:
    """The prefix found for the first is still whole when the device restores it."""
    house = House(limits=LIMITS, budget_bytes=budget(32, 1, slots=2) + 24 * FULL_BYTES)
    house.submit(prompt(20), 4, ignore_eos=True)
    house.run()
    again = house.submit(prompt(20) + prompt(4, 1), 8, ignore_eos=True)
    other = house.submit(prompt(20, 5), 8, ignore_eos=True)
    house.run()
    assert cached(again) == 20
    assert cached(other) == 0
    house.close()


def test_a_crowded_tree_stays_within_its_nodes() -> None:
    house = House(limits=Limits(slots_max=2, prefill_tokens_max=16, tree_nodes_max=8))
    for seed in range(20):
        house.submit(prompt(20, seed), 2)
        house.run()
        assert house.tree.nodes <= 8
    assert house.tree.evictions["crowded"] > 0
    house.close()


def test_a_payload_that_the_device_could_not_make_ends_storing_only() -> None:
    """A capture that was promised and did not come costs a later hit, nothing else."""
    house = House(limits=LIMITS)
    stream = house.submit(prompt(50), 6, ignore_eos=True)
    plan = house.core.plan(house.now)
    assert plan is not None
    result = house.device.run(plan)
    payload = result.prefilled[0].payload
    assert payload is not None
    payload.close()
    bare = type(result)(prefilled=(type(result.prefilled[0])(None, None),))
    house.core.commit(plan, bare, house.now)
    house.core.check()
    house.run()
    assert not any(piece.capture for plan in house.plans for piece in plan.prefills)
    assert cached(stream) == 0
    house.close()


def test_m1_each_buffer_of_the_tree_has_what_it_may_be_larger_by() -> None:
    """In a budget for some ten edges: held() is checked at every step, by Core.check too."""
    reuse = 40
    facts = replace(FACTS, reuse_bytes=reuse, live_buffers=4)
    assert facts.live_bytes(32) == FACTS.live_bytes(32) + 4 * reuse
    room = facts.weights_bytes + facts.live_bytes(32) + ONE_WORKSPACE + 10 * (200 + 2 * reuse)
    house = House(limits=LIMITS, facts=facts, ledger=Ledger(room, facts.weights_bytes))
    for n in range(24):
        house.submit(prompt(20, n), 4, ignore_eos=True)
        house.run()
        tree = house.tree
        assert house.ledger.held("snapshots") == tree.bytes + tree.buffers * reuse > 0
    assert house.tree.evictions["evicted"] > 6
    house.close()


def test_m2_a_tree_out_of_buffers_evicts_the_oldest_though_bytes_are_free() -> None:
    """Metal ends the process at its count of buffers, however much memory there is."""
    facts = replace(FACTS, buffers_max=24, weights_buffers=2, live_buffers=4)
    house = House(limits=LIMITS, facts=facts)
    for n in range(12):
        house.submit(prompt(20, n), 4, ignore_eos=True)
        house.run()
        assert house.tree.buffers <= 24 - 2
    again = house.submit(prompt(20, 11), 4)
    house.run()
    assert cached(again) == 19
    assert house.tree.evictions["evicted"] > 6
    house.close()


def test_m2_a_capture_has_its_buffers_before_the_device_makes_it() -> None:
    """Two slices in one plan, room for the buffers of one: the other is not asked for."""
    facts = replace(FACTS, buffers_max=12, weights_buffers=2, live_buffers=4)
    house = House(limits=LIMITS, facts=facts)
    for n in range(2):
        house.submit(prompt(8, n), 4, ignore_eos=True)
    plan = house.core.plan(house.now)
    assert plan is not None
    assert [piece.capture for piece in plan.prefills] == [True, False]
    result = house.device.run(plan)
    assert house.device.tracker.buffers <= 12 - 2 - 2 * 4
    house.core.commit(plan, result, house.now)
    house.core.check()
    house.run()
    house.close()


def test_m2_what_finds_no_buffer_waits_or_is_not_stored_and_nothing_fails() -> None:
    """One slot's worth: two requests take turns, and the tree has none left."""
    facts = replace(FACTS, buffers_max=7, weights_buffers=2, live_buffers=4)
    house = House(limits=LIMITS, facts=facts)
    streams = [house.submit(prompt(20, n), 4, ignore_eos=True) for n in range(3)]
    while house.step() is not None:
        assert len(house.core._roster.live) <= 1
    assert all(isinstance(stream.end, Finished) for stream in streams)
    assert house.tree.nodes == 0
    house.close()


def test_m2_a_step_reserves_what_pools_take_to_grow_where_that_is_more() -> None:
    """Of four layers one at a time: a quarter of rings and rows exists twice."""
    facts = replace(FACTS, full_layers=4, sliding_layers=4)
    house = House(limits=LIMITS, facts=facts)
    for n in range(2):
        house.submit(prompt(20, n), 12, ignore_eos=True)
    house.step()
    moved = 2 * 32 * FULL_BYTES // 4 + 2 * FACTS.ring_bytes // 4
    assert house.ledger.view().workspace == moved > 16 + 2 * 9
    house.run()
    house.close()


def test_m2_what_a_device_frees_late_is_reserved() -> None:
    """All that a small step makes, and of a large one as much as may be under way."""
    facts = replace(FACTS, made_bytes_per_token=3, late_bytes_max=100)
    house = House(limits=LIMITS, facts=facts)
    first = house.submit(prompt(20), 12, ignore_eos=True)
    house.step()
    assert house.ledger.view().workspace == 16 + 9 + 3 * (16 + 9)
    house.submit(prompt(20, 1), 12, ignore_eos=True)
    while first.end is None and house.step():
        view = house.ledger.view()
        assert view.workspace in (16 + 9 + 75, 16 + 2 * 9 + 100)
    house.run()
    house.close()

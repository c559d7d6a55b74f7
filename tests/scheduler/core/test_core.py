"""Admission, ends and storage of sequences, one behaviour a test, on the fake device."""

from __future__ import annotations

import pytest

from sapwood.scheduler.events import Cancel, Submit
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.outcomes import CancelReason, Outcome
from sapwood.scheduler.reasons import Reason
from tests.scheduler.fake_device import toy_facts
from tests.scheduler.house import SMALL, House, Stream, failed, finished, prompt


def deliver(house: House) -> None:
    house.step() or house.deliver()


# Refusals at the door.


def test_past_the_queue_a_request_is_refused_with_a_time_to_come_back() -> None:
    house = House(limits=SMALL)
    first = house.submit(prompt(10))
    house.step()
    waiting = [house.submit(prompt(10, seed)) for seed in (1, 2)]
    refused = house.submit(prompt(10, 3))
    house.deliver()
    assert failed(refused).reason is Reason.QUEUE_FULL
    assert failed(refused).retry_after_s is not None
    house.run()
    assert [finished(s).reason for s in (first, *waiting)]
    assert house.core.stats().requests[Outcome.REJECTED] == 1
    house.close()


def test_the_time_to_come_back_is_when_the_queue_will_have_room() -> None:
    """The wait of earlier requests does not count: it would be counted twice."""
    house = House(limits=Limits(slots_max=1, queued_max=3, prefill_tokens_max=16))
    begun = house.now
    for seed in range(4):
        house.submit(prompt(8, seed), 200, depth=0, ignore_eos=True)
        house.step()
    house.run()
    each = (house.now - begun) / 4
    assert each > 1.5
    for seed in range(4):
        house.submit(prompt(8, 10 + seed), 50, depth=0, ignore_eos=True)
        house.step()
    refused = house.submit(prompt(8, 20))
    house.deliver()
    told = failed(refused).retry_after_s
    assert told is not None and 3.5 * each < told < 4.1 * each
    house.run()
    house.close()


def test_what_cannot_fit_alone_is_refused_at_once() -> None:
    """L5, both bounds: one capacity step more would never fit, the largest that fits is served."""
    facts = toy_facts()
    workspace = (1 + Limits().draft_depth_max + 16) * facts.workspace_bytes_per_token
    budget = facts.weights_bytes + facts.live_bytes(64) + workspace
    house = House(limits=SMALL, budget_bytes=budget)
    servable, never = house.submit(prompt(60), 4), house.submit(prompt(60), 5)
    house.deliver()
    assert failed(never).reason is Reason.OUT_OF_MEMORY
    house.run()
    assert finished(servable).usage.completion_tokens <= 4
    house.close()
    tight = House(limits=SMALL, budget_bytes=budget - 1)
    assert failed_now(tight, tight.submit(prompt(60), 4)) is Reason.OUT_OF_MEMORY


def failed_now(house: House, stream: Stream) -> Reason:
    house.deliver()
    return failed(stream).reason


def test_a_second_submit_of_a_live_id_changes_nothing() -> None:
    """L1: duplicates are no-ops."""
    house = House(limits=SMALL)
    stream = house.submit(prompt(10), 3)
    house.handle(Submit(stream.request))
    house.step()
    house.handle(Submit(stream.request))
    assert house.core.stats().requests_running == 1
    assert house.core.stats().requests_waiting == 0
    house.run()
    house.close()


# Ends from outside, in every state.


@pytest.mark.parametrize(
    ("reason", "status", "outcome"),
    [
        (CancelReason.CANCELLED, "CANCELLED", Outcome.CANCELLED),
        (CancelReason.DEADLINE, "DEADLINE_EXCEEDED", Outcome.DEADLINE),
        (CancelReason.SLOW_READER, "SLOW_READER", Outcome.FAILED),
        (CancelReason.FAULT, "INTERNAL", Outcome.FAILED),
    ],
)
@pytest.mark.parametrize("steps", [0, 1, 3, 6])
def test_cancel_in_any_state_leaves_with_the_next_plan(
    steps: int, reason: CancelReason, status: str, outcome: Outcome
) -> None:
    """R2: queued, in prefill, in decode; the slot is released by the very next plan."""
    house = House(limits=SMALL)
    stream = house.submit(prompt(40), 30, ignore_eos=True)
    for _ in range(steps):
        house.step()
    house.cancel(stream, reason)
    house.cancel(stream, reason)
    plan = house.step()
    house.deliver()
    assert failed(stream).reason.name == status
    assert house.core.stats().requests[outcome] == 1
    if steps:
        assert plan is not None
        assert plan.releases == (0,)
        assert house.ledger.held("live") == 0
    else:
        assert plan is None
    assert not house.core.has_work
    house.handle(Cancel(stream.request.id))
    assert not house.core.has_work, "L1: DONE is absorbing"
    house.close()


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_a_deadline_is_honoured_in_queue_prefill_and_decode(steps: int) -> None:
    house = House(limits=SMALL)
    deadline = house.now + 100.0
    stream = house.submit(prompt(40), 30, ignore_eos=True, deadline=deadline)
    for _ in range(steps):
        house.step()
    house.now = deadline
    deliver(house)
    assert failed(stream).reason is Reason.DEADLINE_EXCEEDED
    assert house.core.stats().requests[Outcome.DEADLINE] == 1
    house.run()
    house.close()


def test_a_request_without_a_deadline_still_has_a_longest_time() -> None:
    house = House(limits=SMALL)
    stream = house.submit(prompt(8), 30, ignore_eos=True)
    house.step()
    house.now += SMALL.request_s_max
    deliver(house)
    assert failed(stream).reason is Reason.DEADLINE_EXCEEDED
    house.close()


def test_nobody_waits_in_the_queue_for_ever() -> None:
    house = House(limits=Limits(slots_max=1, prefill_tokens_max=16))
    running = house.submit(prompt(8), 30, ignore_eos=True)
    waiting = house.submit(prompt(8, 1), 3)
    house.step()
    house.now += house.limits.queue_s_max
    deliver(house)
    assert failed(waiting).reason is Reason.QUEUE_FULL
    assert "60 s" in failed(waiting).message
    assert failed(waiting).retry_after_s is not None
    house.run()
    assert finished(running).reason == "length"
    house.close()


# Slots and steps.


def test_the_lowest_free_slot_is_taken_and_everybody_decodes_in_every_step() -> None:
    """L3."""
    house = House(limits=Limits(slots_max=4, prefill_tokens_max=16))
    streams = [house.submit(prompt(4, seed), 12, ignore_eos=True) for seed in range(3)]
    house.step()
    house.cancel(streams[1])
    house.step()
    house.submit(prompt(4, 7), 12, ignore_eos=True)
    plan = house.step()
    assert plan is not None
    assert [admit.slot for admit in plan.admits] == [1]
    assert [row.slot for row in plan.decodes] == [0, 2]
    while house.core.stats().requests_running == 3:
        plan = house.step()
        assert plan is not None
        assert sorted(row.slot for row in plan.decodes) == [0, 1, 2]
    house.run()
    house.close()


def test_an_admitted_sequence_is_served_within_as_many_steps_as_there_are_slots() -> None:
    """L2: with one slice a step and long prompts, nobody goes without for longer."""
    limits = Limits(slots_max=5, prefill_tokens_max=8, prefill_slices_max=1)
    house = House(limits=limits)
    for seed in range(5):
        house.submit(prompt(60 + 10 * seed, seed), 20, ignore_eos=True)
    last: dict[int, int] = {}
    while house.core.has_work:
        plan = house.step()
        assert plan is not None
        served = {row.slot for row in plan.decodes} | {piece.slot for piece in plan.prefills}
        for slot in house.device.slots:
            last.setdefault(slot, plan.number - 1)
            if slot in served:
                last[slot] = plan.number
            assert plan.number - last[slot] <= limits.slots_max
        last = {slot: step for slot, step in last.items() if slot in house.device.slots}
    house.close()


def test_an_admitted_sequence_ends_within_a_known_number_of_steps() -> None:
    """L2: its slices, each at worst a turn of all slots away, and one token a step at least."""
    limits = Limits(slots_max=3, prefill_tokens_max=16, prefill_slices_max=2)
    house = House(limits=limits, quality=0.0)
    streams = [
        house.submit(prompt(20 + 9 * n, n), 5 + n, ignore_eos=True, depth=n % 3) for n in range(12)
    ]
    begun: dict[int, int] = {}
    ended: dict[int, int] = {}
    while house.core.has_work:
        plan = house.step()
        house.deliver()
        assert plan is not None
        for stream in streams:
            if stream.progress:
                begun.setdefault(stream.request.id, plan.number)
            if stream.end is not None:
                ended.setdefault(stream.request.id, plan.number)
    share = 16 // 4 // limits.prefill_slices_max
    for stream in streams:
        request = stream.request
        slices = -(-len(request.prompt) // share)
        steps = ended[request.id] - begun[request.id]
        assert steps <= limits.slots_max * slices + request.max_tokens
    house.close()


def test_there_is_no_plan_without_work() -> None:
    """L6: no spinning."""
    house = House(limits=SMALL)
    assert not house.core.has_work
    assert house.step() is None
    house.submit(prompt(4), 1)
    house.run()
    assert house.step() is None
    assert not house.core.finished, "not before a drain"
    house.close()


@pytest.mark.parametrize("depth", range(9))
def test_a_pinned_depth_is_kept_exactly(depth: int) -> None:
    """Each round drafts min(depth, remaining - 1)."""
    house = House(quality=0.6)
    stream = house.submit(prompt(8), 25, depth=depth, ignore_eos=True)
    while house.core.has_work:
        emitted = len(stream.tokens)
        plan = house.step()
        house.deliver()
        assert plan is not None
        for row in plan.decodes:
            assert row.depth == min(depth, 25 - emitted - 1)
    drafted = [row.depth for plan in house.plans for row in plan.decodes if row.depth]
    usage = finished(stream).usage
    assert (usage.rounds, usage.draft_tokens) == (len(drafted), sum(drafted))
    house.close()


def test_without_a_drafter_nobody_drafts() -> None:
    house = House(facts=toy_facts(has_drafter=False))
    stream = house.submit(prompt(8), 12)
    house.run()
    assert all(row.depth == 0 for plan in house.plans for row in plan.decodes)
    assert finished(stream).usage.draft_tokens == 0
    house.close()


# What is stored.


# The protocol with the engine.


def test_events_and_plans_wait_for_the_commit() -> None:
    house = House()
    stream = house.submit(prompt(8), 3)
    plan = house.core.plan(house.now)
    assert plan is not None
    with pytest.raises(AssertionError, match="while step 1 runs"):
        house.core.handle(Cancel(stream.request.id), house.now)
    with pytest.raises(AssertionError, match="not committed"):
        house.core.plan(house.now)
    result = house.device.run(plan)
    with pytest.raises(AssertionError, match="was not planned"):
        house.core.commit(plan.__class__(7), result, house.now)
    house.core.commit(plan, result, house.now)
    house.run()
    house.close()

"""Whose row goes for whom, step by step; what it comes to in time is in tests/sim/test_fair.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sapwood.scheduler.core.sequence import Sequence
from sapwood.scheduler.events import Priority
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.plan import StepPlan
from sapwood.scheduler.reasons import Reason
from tests.scheduler.fake_device import toy_facts
from tests.scheduler.house import House, Stream, failed, finished, prompt

FOUR = Limits(slots_max=4, prefill_tokens_max=64, draft_depth_max=8)
FACTS = toy_facts(depth_max=FOUR.draft_depth_max)


def house_of(streams: int, limits: Limits = FOUR, **options: Any) -> tuple[House, list[Stream]]:
    """All of "many", some steps on their way."""
    house = House(limits=limits)
    many = [ask(house, n, 60, principal="many", **options) for n in range(streams)]
    for _ in range(6):
        house.step()
    return house, many


def ask(house: House, seed: int, max_tokens: int, **options: Any) -> Stream:
    return house.submit(prompt(20, seed), max_tokens, ignore_eos=True, depth=0, **options)


def stepped(house: House) -> StepPlan:
    plan = house.step()
    assert plan is not None
    return plan


def parked(house: House) -> list[int]:
    return [sequence.id for sequence in house.core._roster.waiting if sequence.parks]


def live(house: House) -> dict[str, int]:
    rows: dict[str, int] = {}
    for sequence in house.core._roster.live.values():
        rows[sequence.request.principal] = rows.get(sequence.request.principal, 0) + 1
    return rows


def sequence_of(house: House, stream: Stream) -> Sequence:
    sequence = house.core._roster.find(stream.request.id)
    assert sequence is not None
    return sequence


def test_l4_a_newcomer_has_the_youngest_row_of_who_has_all_at_once() -> None:
    house, many = house_of(8)
    ask(house, 9, 8, principal="one")
    plan = stepped(house)
    assert len(plan.releases) == len(plan.admits) == 1
    assert parked(house) == [many[3].request.id]
    house.run()
    assert [finished(stream).usage.completion_tokens for stream in many] == [60] * 8
    house.close()


def test_l4_rows_go_one_in_a_step_down_to_the_share_and_no_further() -> None:
    house, _ = house_of(8)
    for n in range(6):
        ask(house, 10 + n, 40, principal="one")
    for step in range(1, 6):
        stepped(house)
        assert live(house) == {"many": 4 - min(step, 2), "one": min(step, 2)}
    house.run()
    house.close()


def test_l4_by_weight() -> None:
    house, _ = house_of(8)
    for n in range(6):
        ask(house, 10 + n, 40, principal="one", weight=3.0)
    for _ in range(5):
        stepped(house)
    assert live(house) == {"many": 1, "one": 3}
    house.run()
    house.close()


def test_l7_nobody_goes_for_others_as_often_as_memory_might_need() -> None:
    """Nor the oldest, however many come."""
    house = House(limits=replace(FOUR, yield_steps_min=1000))
    many = [ask(house, n, 150, principal="many") for n in range(4)]
    rows = [sequence_of(house, stream) for stream in many]
    for n in range(24):
        for _ in range(4):
            stepped(house)
        ask(house, 10 + n, 1, principal="one")
    house.run()
    parks = [row.forced for row in rows]
    assert parks[0] == 0 and 0 < max(parks) < FOUR.parks_max
    house.close()


def test_who_is_alone_is_never_parked_for_its_own() -> None:
    house, many = house_of(8)
    house.run()
    assert house.core.stats().parks == 0
    assert all(finished(stream) for stream in many)
    house.close()


def test_a_slot_is_kept_for_who_ended_there_and_asks_again() -> None:
    """A plan long; where nobody comes it is given away."""
    limits = replace(FOUR, slots_max=2)
    house = House(limits=limits)
    for n in range(4):
        ask(house, n, 60, principal="many")
    one = ask(house, 9, 3, principal="one")
    while one.end is None:
        stepped(house)
    assert live(house) == {"many": 1}, "the plan that let it go"
    ask(house, 10, 3, principal="one")
    stepped(house)
    assert live(house) == {"many": 1, "one": 1}
    parks = house.core.stats().parks
    while "one" in live(house):
        stepped(house)
    assert live(house) == {"many": 1}
    stepped(house)
    assert live(house) == {"many": 1}, "kept"
    stepped(house)
    assert live(house) == {"many": 2}
    assert house.core.stats().parks == parks, "nobody had to go"
    house.run()
    house.close()


def test_a_batch_row_goes_for_its_principals_other_requests() -> None:
    house, _ = house_of(8, priority=Priority.BATCH)
    urgent = ask(house, 9, 8, principal="many", priority=Priority.INTERACTIVE)
    normal = ask(house, 11, 8, principal="many")
    stepped(house)
    stepped(house)
    house.deliver()
    assert urgent.tokens and sequence_of(house, normal).slot >= 0
    house.run()
    house.close()


def test_no_row_goes_for_who_does_not_fit() -> None:
    """Where memory refuses after all, nobody is parked for a while."""
    slots = 3 * FACTS.live_bytes(128) + (64 + 4 * 9) * FACTS.workspace_bytes_per_token
    limits = replace(FOUR, slots_max=3, reply_tokens_guess=60, yield_steps_min=32)
    house = House(limits=limits, budget_bytes=FACTS.weights_bytes + slots)
    for n in range(6):
        ask(house, n, 60, principal="many")
    for _ in range(6):
        house.step()
    large = house.submit(prompt(150, 9), 4, ignore_eos=True, principal="one")
    for _ in range(20):
        house.step()
    assert house.core.stats().parks <= 1
    house.run()
    assert finished(large)
    house.close()


def test_where_memory_is_short_who_has_most_gives_a_row() -> None:
    """Of one that came last and has one row, and two older of one principal: the second of two."""
    limits = replace(FOUR, prefill_tokens_max=32, share_tokens_min=8, reply_tokens_guess=1)
    workspace = (32 + 3 * 9) * FACTS.workspace_bytes_per_token
    budget = FACTS.weights_bytes + FACTS.live_bytes(128) + FACTS.live_bytes(64) + workspace
    house = House(limits=limits, budget_bytes=budget)
    two = [ask(house, n, 80, principal="two") for n in range(2)]
    ask(house, 9, 80, principal="one")
    while not parked(house):
        stepped(house)
    assert parked(house) == [two[1].request.id]
    house.run()
    house.close()


def test_l4_a_full_queue_has_a_place_for_who_has_less_of_it() -> None:
    house = House(limits=replace(FOUR, slots_max=1, queued_max=4))
    many = [ask(house, n, 30, principal="many") for n in range(4)]
    house.step()
    many.append(ask(house, 4, 30, principal="many"))
    other = ask(house, 9, 5, principal="other")
    house.deliver()
    assert failed(many[-1]).reason is Reason.QUEUE_FULL
    assert failed(many[-1]).retry_after_s is not None
    again = ask(house, 5, 30, principal="many")
    house.deliver()
    assert failed(again).reason is Reason.QUEUE_FULL, "it has most of the queue itself"
    house.run()
    assert finished(other)
    house.close()


def test_l4_where_memory_is_what_is_short_a_newcomer_has_room_too() -> None:
    """Slots are free; three rows of one principal are all that fit."""
    workspace = (64 + 4 * 9) * FACTS.workspace_bytes_per_token
    room = 3 * FACTS.live_bytes(64) + workspace
    limits = replace(FOUR, slots_max=8, reply_tokens_guess=1)
    house = House(limits=limits, budget_bytes=FACTS.weights_bytes + room)
    options = {"ignore_eos": True, "depth": 0, "cache_bypass": True}
    many = [house.submit(prompt(40, n), 20, principal="many", **options) for n in range(6)]
    for _ in range(3):
        stepped(house)
    assert live(house) == {"many": 3}
    house.submit(prompt(40, 9), 20, principal="one", **options)
    for _ in range(3):
        stepped(house)
    assert live(house) == {"many": 2, "one": 1}
    house.run()
    assert all(finished(stream) for stream in many)
    house.close()


def test_accounts_of_those_who_are_gone_are_bounded() -> None:
    house = House(limits=replace(FOUR, slots_max=2, accounts_max=3))
    for n in range(12):
        ask(house, n, 6, principal=f"p{n}")
        ask(house, 20 + n, 6, principal="always")
        ask(house, 40 + n, 6, principal="always")
        house.run()
    accounts = house.core._fairness
    assert 2 < len(accounts._had) <= 6 and len(accounts._tilts) <= 6
    house.close()

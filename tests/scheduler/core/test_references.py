"""What slots hold by reference: who does, what that leaves to reserve, and where it lies."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest

from sapwood.scheduler.limits import Limits
from sapwood.scheduler.plan import StepPlan
from tests.fakes import FULL_BYTES, SLIDING_BYTES
from tests.scheduler.fake_device import toy_facts
from tests.scheduler.house import House, finished, prompt

LIMITS = Limits(
    slots_max=4,
    prefill_tokens_max=16,
    share_tokens_min=8,
    referred_reads_min=20,
    referred_edge_tokens_min=20,
)
FACTS = toy_facts()


def short_of_room(prompt_tokens: int, tokens_max: int) -> int:
    """A budget for one slot and what it stores of its prompt, and for little else."""
    stored = prompt_tokens * (FULL_BYTES + SLIDING_BYTES)
    return FACTS.weights_bytes + FACTS.live_bytes(tokens_max) + 16 + 9 + stored + 60


def step_until(house: House, seen: Callable[[StepPlan], object]) -> StepPlan:
    """The first plan of which that is so."""
    for plan in itertools.islice(iter(house.step, None), 200):
        if seen(plan):
            return plan
    raise AssertionError("it never was")


def test_two_who_come_together_refer_to_what_they_share_and_reserve_the_rest() -> None:
    house = House(limits=LIMITS)
    house.submit(prompt(30), 2)
    house.run()
    for seed in (1, 2):
        house.submit((*prompt(30), *prompt(4, seed)), 12, ignore_eos=True)
    plan = house.step()
    assert plan is not None
    assert [(admit.target, admit.base) for admit in plan.admits] == [(30, 30), (30, 30)]
    assert house.ledger.view().live == 2 * FACTS.live_bytes(4 + 12)
    assert house.core.stats().segments_bytes == 30 * FULL_BYTES, "once"
    house.run()
    assert house.ledger.view().live == house.core.stats().segments_bytes == 0
    house.close()


def test_alone_a_prefix_is_copied() -> None:
    house = House(limits=LIMITS)
    house.submit(prompt(30), 2)
    house.run()
    house.submit((*prompt(30), 5, 6), 12, ignore_eos=True)
    plan = house.step()
    assert plan is not None
    assert [(admit.target, admit.base) for admit in plan.admits] == [(30, 0)]
    assert house.ledger.view().live == FACTS.live_bytes(44)
    assert house.core.stats().segments_bytes == 0
    house.run()
    house.close()


def test_whoever_keeps_out_of_the_cache_refers_to_nothing() -> None:
    house = House(limits=LIMITS)
    house.submit(prompt(50), 9, cache_bypass=True, ignore_eos=True)
    house.run()
    assert not any(plan.seals or any(a.base for a in plan.admits) for plan in house.plans)
    house.close()


def test_alone_a_prefix_is_referred_to_where_its_copy_would_evict() -> None:
    house = House(limits=LIMITS, budget_bytes=FACTS.weights_bytes + 2 * FACTS.live_bytes(64))
    house.submit(prompt(30), 2)
    house.run()
    house.submit((*prompt(30), 5, 6), 20, ignore_eos=True)
    plan = house.step()
    assert plan is not None
    assert [(admit.target, admit.base) for admit in plan.admits] == [(30, 30)]
    assert not sum(house.tree.evictions.values())
    house.run()
    house.close()


def test_where_there_is_room_a_long_prompt_keeps_its_row() -> None:
    house = House(limits=LIMITS)
    house.submit(prompt(40), 12, ignore_eos=True)
    house.run()
    assert not any(plan.seals for plan in house.plans)
    house.close()


def test_where_room_is_short_a_long_prompt_that_was_read_is_sealed_and_its_row_is_free() -> None:
    house = House(limits=LIMITS, budget_bytes=short_of_room(40, 52))
    stream = house.submit(prompt(40), 12, ignore_eos=True)
    step_until(house, lambda plan: any(piece.draws for piece in plan.prefills))
    assert house.ledger.view().live == FACTS.live_bytes(52)
    plan = house.step()
    assert plan is not None
    assert [seal.slot for seal in plan.seals] == [0]
    assert [(p.start, p.end) for seal in plan.seals for p in seal.path] == [(0, 40)], "joined"
    assert house.ledger.view().live == FACTS.live_bytes(12)
    house.run()
    assert sum(len(plan.seals) for plan in house.plans) == 1
    turn = stream.request.prompt + tuple(stream.tokens)
    assert house.tree.match(b"root", turn).tokens == len(turn) - 1, "the reply behind it too"
    house.close()


def test_a_prompt_that_could_not_be_stored_keeps_its_row() -> None:
    facts = replace(FACTS, edge_tokens_max=10)
    house = House(limits=LIMITS, facts=facts, budget_bytes=short_of_room(40, 52))
    house.submit(prompt(40), 12, ignore_eos=True)
    house.run()
    assert not any(plan.seals for plan in house.plans)
    house.close()


def test_who_refers_to_what_is_cut_is_told_where_it_lies() -> None:
    house = House(limits=LIMITS, budget_bytes=short_of_room(60, 90))
    house.submit(prompt(60), 30, ignore_eos=True)
    step_until(house, lambda plan: plan.seals)
    house.submit((*prompt(60)[:50], *prompt(9, 3)), 2)
    plan = step_until(house, lambda plan: plan.repoints)
    (repoint,) = (repoint for repoint in plan.repoints if not repoint.slot)
    assert [(p.start, p.end) for p in repoint.path][:2] == [(0, 50), (50, 60)]
    assert house.core.stats().segments_bytes == 60 * FULL_BYTES, "of both"
    house.run()
    house.close()


def test_nobody_is_told_where_nothing_has_moved() -> None:
    house = House(limits=LIMITS, budget_bytes=short_of_room(60, 90))
    house.submit(prompt(60), 30, ignore_eos=True)
    house.run()
    assert any(plan.seals for plan in house.plans)
    assert not any(plan.repoints for plan in house.plans)
    house.close()


@pytest.mark.parametrize("more", [0, 1])
def test_what_a_plan_restores_is_not_thinned_for_whom_it_admits_next(more: int) -> None:
    """T9: a second comes in the same plan, and takes what is left to the last window."""
    live = FACTS.live_bytes(52) + FACTS.live_bytes(40)
    window = FACTS.window_tokens * 10 + 40 * 3
    room = FACTS.weights_bytes + live + 16 + 2 * 9 + window + more
    house = House(limits=LIMITS, budget_bytes=room)
    first = house.submit(prompt(40), 2, ignore_eos=True)
    house.run()
    again = house.submit((*prompt(40), 5), 11, ignore_eos=True)
    other = house.submit(prompt(20, 7), 20, ignore_eos=True)
    house.run()
    assert finished(first) and finished(other)
    assert finished(again).usage.cached_tokens == 40
    house.close()

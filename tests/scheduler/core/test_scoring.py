"""Prompts whose log-probabilities are asked for: read whole, in slices, and told of once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sapwood.scheduler.limits import Limits
from tests.scheduler.fake_device import toy_facts
from tests.scheduler.house import House, Stream, finished, prompt

LIMITS = Limits(slots_max=4, prefill_tokens_max=64, scored_tokens_max=8, share_tokens_min=8)


def told(stream: Stream) -> int:
    return sum(len(progress.logprobs) for progress in stream.progress)


@pytest.mark.parametrize("tokens", [1, 2, 8, 9, 50])
def test_each_token_but_the_first_is_told_of_once(tokens: int) -> None:
    """The house compares what is told; here it is counted, and slices with it."""
    house = House(limits=LIMITS)
    stream = house.submit(prompt(tokens), 6, prompt_logprobs=2)
    house.run()
    assert told(stream) == tokens - 1
    slices = [p for plan in house.plans for p in plan.prefills]
    assert [len(p.tokens) for p in slices] == [8] * (tokens // 8) + [tokens % 8] * bool(tokens % 8)
    house.close()


def test_nothing_of_it_comes_from_the_tree_and_the_tree_gets_it() -> None:
    house = House(limits=LIMITS)
    house.submit(prompt(40), 4)
    house.run()
    scored = house.submit(prompt(40), 4, prompt_logprobs=1)
    beside = house.submit(prompt(40), 4)
    house.run()
    assert finished(scored).usage.cached_tokens == 0 and told(scored) == 39
    assert finished(beside).usage.cached_tokens == 39, "nobody waits for it"
    other = house.submit(prompt(30, 5), 4, prompt_logprobs=1)
    house.run()
    again = house.submit(prompt(30, 5), 4)
    house.run()
    assert told(other) == 29 and finished(again).usage.cached_tokens == 29
    house.close()


def test_who_is_scored_does_not_wait_for_anothers_prefix() -> None:
    house = House(limits=LIMITS)
    house.submit(prompt(60), 4)
    scored = house.submit(prompt(60), 4, prompt_logprobs=1)
    house.step()
    assert scored.request.id in house.core._roster.live
    house.run()
    house.close()


@pytest.mark.parametrize("budget", [1500, 1900, 2400, 4000])
def test_who_is_parked_is_told_nothing_twice(budget: int) -> None:
    """By whatever order of parks: replies outgrow the memory that all of them have."""
    limits = replace(LIMITS, reply_tokens_guess=1)
    house = House(limits=limits, budget_bytes=1000 + budget)
    streams = [
        house.submit(prompt(40, n), 60, prompt_logprobs=n % 2, ignore_eos=True) for n in range(5)
    ]
    house.run()
    assert [told(stream) for stream in streams] == [0, 39, 0, 39, 0]
    house.close()


def test_a_lost_step_is_told_of_when_it_is_done_again() -> None:
    house = House(limits=LIMITS)
    stream = house.submit(prompt(40), 6, prompt_logprobs=1)
    house.step()
    plan = house.core.plan(house.now)
    assert plan is not None
    house.device.slots.clear()
    house.device.steps += 1
    house._lose(plan)
    house.run()
    assert told(stream) == 39 and finished(stream).usage.cached_tokens == 0
    house.close()


def test_a_step_has_room_for_the_scores() -> None:
    facts = replace(toy_facts(), logits_bytes_per_row=3, wide_bytes_per_row=4)
    held = []
    for asked in (0, 5):
        house = House(facts=facts)
        house.submit(prompt(5), 8, prompt_logprobs=asked)
        house.core.plan(house.now)
        held.append(house.ledger.held("workspace"))
    assert held[1] - held[0] == facts.scoring_bytes == 16 * 7


def _lose_step(house: House) -> None:
    plan = house.core.plan(house.now)
    assert plan is not None
    house.deliver()
    house.device.slots.clear()
    house.device.steps += 1
    house._lose(plan)


def test_who_comes_back_takes_no_more_from_the_tree_than_was_told() -> None:
    """Somebody else has stored all of the prompt; what is not told yet has no scores there."""
    house = House(limits=LIMITS)
    house.submit(prompt(40), 4)
    house.run()
    stream = house.submit(prompt(40), 4, prompt_logprobs=1)
    house.step()
    house.step()
    house.core._memory._stored.shed = lambda step: None  # type: ignore[method-assign]
    _lose_step(house)
    house.run()
    assert finished(stream).usage.cached_tokens == 0 and told(stream) == 39
    assert house.device.evaluated_tokens < 40 + 40 + 40, "what was told is not read again"
    house.close()

"""Deadlines: kept to the step, and told early to who wants that."""

from __future__ import annotations

from typing import Any

from sapwood.scheduler.limits import Limits
from sapwood.scheduler.outcomes import Outcome
from sapwood.scheduler.reasons import Reason
from tests.scheduler.house import House, Stream, failed, finished, prompt

LIMITS = Limits(slots_max=2, prefill_tokens_max=32)
STEP_S, TOKEN_S = 0.010, 0.0005  # FakeDevice.seconds


def reading_s(tokens: int) -> float:
    """Of a prompt that has the device to itself."""
    return STEP_S * -(-tokens // LIMITS.prefill_tokens_max) + TOKEN_S * tokens


def taught() -> House:
    """One that has seen some steps of all kinds."""
    house = House(limits=LIMITS)
    for seed in range(6):
        ask(house, 20 + 30 * seed, seed)
    house.run()
    return house


def ask(house: House, tokens: int, seed: int, **options: Any) -> Stream:
    options = {"ignore_eos": True, "depth": 0, "max_tokens": 10} | options
    return house.submit(prompt(tokens, seed), **options)


def test_what_cannot_begin_in_time_is_refused_at_once() -> None:
    house = taught()
    late = ask(house, 400, 20, deadline=house.now + 0.8 * reading_s(400), early=True)
    house.deliver()
    assert failed(late).reason is Reason.DEADLINE_EXCEEDED
    assert failed(late).retry_after_s is None
    assert not house.core.has_work
    assert house.core.stats().requests[Outcome.DEADLINE] == 1
    assert house.core.stats().requests[Outcome.REJECTED] == 0
    house.close()


def test_what_can_is_served_and_has_its_first_token_in_time() -> None:
    house = taught()
    deadline = house.now + 1.25 * reading_s(400)
    stream = ask(house, 400, 20, deadline=deadline, early=True, max_tokens=1)
    house.run()
    assert finished(stream).usage.completion_tokens == 1
    assert house.now <= deadline
    house.close()


def test_who_does_not_ask_for_it_is_tried_until_its_time_is_over() -> None:
    house = taught()
    deadline = house.now + 0.8 * reading_s(400)
    late = ask(house, 400, 20, deadline=deadline)
    house.run()
    assert failed(late).reason is Reason.DEADLINE_EXCEEDED
    assert late.progress and house.now >= deadline
    house.close()


def test_what_the_tree_has_need_not_be_read() -> None:
    house = taught()
    ask(house, 400, 20)
    house.run()
    deadline = house.now + 0.2 * reading_s(400)
    again = ask(house, 400, 20, deadline=deadline, early=True, max_tokens=1)
    house.run()
    assert finished(again).usage.cached_tokens > 390
    house.close()


def test_who_waits_for_a_slot_longer_than_it_has_is_refused_at_once() -> None:
    """By how long requests have had theirs."""
    house = taught()
    for seed in range(12):
        ask(house, 20, 30 + seed, max_tokens=60)
    house.step()
    late = ask(house, 20, 50, deadline=house.now + 0.3, early=True)
    house.deliver()
    assert failed(late).reason is Reason.DEADLINE_EXCEEDED
    in_time = ask(house, 20, 51, deadline=house.now + 30.0, early=True)
    mine = ask(house, 20, 52, deadline=house.now + 0.3, early=True, principal="another")
    house.deliver()
    assert in_time.end is None and mine.end is None, "it has a share of its own"
    house.run()
    assert finished(in_time).usage.completion_tokens == finished(mine).usage.completion_tokens == 10
    house.close()


def test_a_prompt_that_falls_behind_takes_no_more_of_the_device() -> None:
    """The device got slow: it ends as soon as the rest cannot be read in time."""
    house = taught()
    deadline = house.now + 1.5 * reading_s(600)
    stream = ask(house, 600, 20, deadline=deadline, early=True)
    house.step()
    seconds, house.device.seconds = house.device.seconds, lambda plan: 6 * seconds(plan)  # type: ignore[method-assign]
    house.run()
    assert failed(stream).reason is Reason.DEADLINE_EXCEEDED
    assert house.now < deadline
    house.close()


def test_where_nothing_was_learned_everything_is_tried() -> None:
    house = House(limits=LIMITS)
    stream = ask(house, 20, 1, deadline=house.now + 0.1, early=True, max_tokens=1)
    house.run()
    assert finished(stream)
    house.close()


def test_a_deadline_ends_a_reply_between_two_rounds_and_its_slot_is_free_in_the_next_plan() -> None:
    house = taught()
    late = ask(house, 20, 40, deadline=house.now + 0.3, max_tokens=500)
    other = ask(house, 20, 41, max_tokens=60)
    while late.end is None:
        before, plan = house.now, house.step()
        house.deliver()
    assert plan is not None and len(plan.releases) == 1, "the plan that ends it gives its slot"
    assert failed(late).reason is Reason.DEADLINE_EXCEEDED and late.tokens
    request = late.request
    assert request.deadline is not None and before >= request.deadline
    assert before - request.deadline < 0.05, "one step late at most"
    house.run()
    assert finished(other).usage.completion_tokens == 60
    house.close()


def test_a_deadline_ends_a_prompt_between_two_slices() -> None:
    """Beside one who decodes its slices are short."""
    house = taught()
    ask(house, 20, 41, max_tokens=300)
    for _ in range(5):
        house.step()
    late = ask(house, 600, 40, deadline=house.now + 0.2)
    while late.end is None:
        before, _ = house.now, house.step()
        house.deliver()
    assert failed(late).reason is Reason.DEADLINE_EXCEEDED
    assert len(late.progress) > 2 and not late.tokens
    assert late.request.deadline is not None and before - late.request.deadline < 0.05
    house.run()
    house.close()

"""A step for which the device had no memory: who lives is parked and goes on."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from sapwood.scheduler.limits import Limits
from sapwood.scheduler.outcomes import CancelReason
from sapwood.scheduler.plan import StepPlan
from sapwood.scheduler.result import DeviceExhausted, StepLost, StepResult
from tests.fakes import FULL_BYTES, SLIDING_BYTES
from tests.scheduler.fake_device import FakeDevice, toy_facts
from tests.scheduler.house import House, prompt

LIMITS = Limits(slots_max=3, prefill_tokens_max=16, lost_steps_max=2)
FACTS = toy_facts()


class Losing(FakeDevice):
    """Has no memory for the steps of these numbers."""

    def __init__(self, lost: Collection[int]) -> None:
        super().__init__(FACTS, LIMITS)
        self._lost = lost

    def run(self, plan: StepPlan) -> StepResult:
        if plan.number in self._lost:
            self.steps = plan.number
            self.slots.clear()
            raise StepLost("there was no memory")
        return super().run(plan)


def house_of(lost: Collection[int] = ()) -> House:
    """Three requests: a long prompt, and two that share one: the second waits for the first."""
    house = House(limits=LIMITS, facts=FACTS, device=Losing(lost))
    house.submit(prompt(40), 9, ignore_eos=True)
    for seed in (1, 2):
        house.submit((*prompt(30, 5), *prompt(4, seed)), 6, ignore_eos=True)
    return house


@pytest.mark.parametrize("step", range(1, 13))
def test_whichever_step_is_lost_replies_are_the_same(step: int) -> None:
    whole, losing = house_of(), house_of({step})
    for house in (whole, losing):
        house.run()
        house.close()
    for id, stream in whole.streams.items():
        assert losing.streams[id].tokens == stream.tokens
        assert losing.streams[id].text == stream.text
    rows = len(losing.plans[step - 1].decodes) + len(losing.plans[step - 1].prefills)
    assert losing.lost_steps == 1 and losing.core.stats().parks >= rows


def test_everybody_is_parked_the_oldest_too_and_comes_back() -> None:
    house = house_of({4})
    for _ in range(4):
        house.step()
    stats = house.core.stats()
    assert (stats.requests_running, stats.requests_parked) == (0, 3)
    assert stats.memory.live == stats.memory.workspace == 0
    plan = house.step()
    assert plan is not None
    assert prompt(40) in [admit.prompt for admit in plan.admits]
    assert sum(admit.target for admit in plan.admits) > 0, "what was stored is found"
    house.run()
    house.close()


def test_prompt_tokens_are_counted_once() -> None:
    house = house_of({4})
    house.run()
    stats = house.core.stats()
    assert stats.prompt_tokens == 40 + 2 * 34
    assert stats.prompt_tokens == stats.prefix_cached_tokens + sum(
        stats.prefix_recomputed_tokens.values()
    )
    house.close()


def test_what_ended_and_was_to_be_captured_is_not_stored() -> None:
    house = House(limits=LIMITS, facts=FACTS, device=Losing({4}))
    stream = house.submit(prompt(10), 3, ignore_eos=True)
    for _ in range(4):
        plan = house.step()
        if plan is not None and plan.captures:
            break
    assert plan is not None and plan.number == 4 and plan.captures
    turn = (*stream.request.prompt, *stream.tokens)
    assert house.tree.match(b"root", turn).matched == 10, "the prompt, and nothing behind it"
    assert not house.core.has_work
    house.close()


def test_half_of_what_nobody_needs_is_given_up() -> None:
    house = House(limits=LIMITS, facts=FACTS, device=Losing({9}))
    for seed in range(4):
        house.submit(prompt(16, seed), 1)
        house.run()
    assert house.plans[-1].number == 8
    before = house.tree.bytes
    assert before == 4 * 16 * (FULL_BYTES + SLIDING_BYTES)
    house.submit(prompt(16, 9), 2, ignore_eos=True)
    house.step()
    assert house.lost_steps == 1 and before / 4 <= house.tree.bytes <= before / 2
    house.run()
    house.close()


def test_a_request_may_be_cancelled_after_its_step_was_lost() -> None:
    house = house_of({2})
    for _ in range(2):
        house.step()
    house.cancel(house.streams[1], CancelReason.CANCELLED)
    house.run()
    house.close()


def test_step_after_step_lost_ends_it() -> None:
    house = house_of({2, 3, 5, 6, 7})
    with pytest.raises(DeviceExhausted, match="3 steps"):
        house.run()
    assert house.lost_steps == 4, "a step between begins anew"

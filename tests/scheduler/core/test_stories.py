"""What the core tells of itself when something is wrong, and an answer that brought nothing."""

from __future__ import annotations

from dataclasses import replace

from sapwood.scheduler.limits import Limits
from sapwood.scheduler.plan import StepPlan
from sapwood.scheduler.result import StepResult
from tests.scheduler.fake_device import FakeDevice
from tests.scheduler.house import House, finished, prompt

ONE_SLOT = Limits(slots_max=1, prefill_tokens_max=16)


def test_everybody_who_is_not_gone_has_a_story_without_text() -> None:
    house = House(limits=ONE_SLOT)
    long, waiting = house.submit(prompt(20)), house.submit(prompt(10, 1))
    house.step()
    came = "1000.000000 QUEUED (submitted)"
    assert [story.split(";")[0] for story in house.core.stories()] == [
        f"sequence {waiting.request.id}: {came}",
        f"sequence {long.request.id}: {came}, 1000.000000 PREFILL (admitted)",
    ]
    told = " ".join(house.core.stories())
    assert ", ".join(map(str, prompt(20)[:3])) not in told
    house.cancel(long)
    assert "DONE (cancelled)" in house.core.stories()[-1], "it still has its slot"
    house.run()
    assert house.core.stories() == []
    house.close()


class Forgetful(FakeDevice):
    """Its captures of slots bring nothing."""

    def run(self, plan: StepPlan) -> StepResult:
        result = super().run(plan)
        for payload in filter(None, result.captured):
            payload.close()
        return replace(result, captured=tuple(None for _ in result.captured))


def test_a_capture_that_brought_nothing_is_only_not_stored() -> None:
    """M1 is checked after every step: what was promised for it is given back."""
    house = House(limits=ONE_SLOT)
    house.device = Forgetful(house.facts, house.limits)
    first = house.submit(prompt(20), 6, ignore_eos=True)
    house.run()
    again = house.submit((*prompt(20), *first.tokens, 5), 1)
    house.run()
    assert finished(again).usage.cached_tokens == 20, "the prompt, not the reply"
    house.close()

"""A constraint is the device's affair: the core hands it on, and ends whose constraint breaks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sapwood.scheduler.core.demand import Demand, slots_bytes
from sapwood.scheduler.events import Failed, Finished
from sapwood.scheduler.outcomes import Outcome
from sapwood.scheduler.plan import StepPlan
from sapwood.scheduler.reasons import Reason
from sapwood.scheduler.result import StepResult
from tests.scheduler.fake_device import FakeDevice, toy_facts
from tests.scheduler.house import House, prompt


class Breaking(FakeDevice):
    """Of one slot it says, in one step, that its constraint broke."""

    breaks = 0  # in which of its parts in a plan the sequence breaks; 0: never
    whose: tuple[int, ...] = ()  # its prompt
    slot = -1
    parts = 0

    def run(self, plan: StepPlan) -> StepResult:
        result = super().run(plan)
        self.slot = next((a.slot for a in plan.admits if a.prompt == self.whose), self.slot)
        parts = [row.slot for row in plan.decodes] + [piece.slot for piece in plan.prefills]
        self.parts += self.slot in parts
        if not self.breaks or self.parts != self.breaks:
            return result
        slot = self.slot
        decoded = tuple(
            replace(each, failure="no way on") if row.slot == slot else each
            for row, each in zip(plan.decodes, result.decoded, strict=True)
        )
        prefilled = tuple(
            replace(each, failure="no way on") if piece.slot == slot else each
            for piece, each in zip(plan.prefills, result.prefilled, strict=True)
        )
        return replace(result, decoded=decoded, prefilled=prefilled)


def house_of() -> tuple[House, Breaking]:
    house = House()
    device = Breaking(house.facts, house.limits, 0.7)
    house.device = device
    return house, device


@pytest.mark.parametrize("part", range(1, 6))
def test_whose_constraint_breaks_ends_alone_and_at_once(part: int) -> None:
    """In the first slice of its prompt, at its first token, in a round: whatever it is."""
    undisturbed, _ = house_of()
    due = [undisturbed.submit(prompt(40, n), 12, ignore_eos=True) for n in range(3)]
    while undisturbed.core.has_work:
        undisturbed.step()
    house, device = house_of()
    streams = [
        house.submit(prompt(40, n), 12, ignore_eos=True, constraint=object()) for n in range(3)
    ]
    device.breaks, device.whose = part, streams[1].request.prompt
    while house.core.has_work:
        house.step()
    broken = streams[1]
    assert broken.end == Failed(broken.request.id, Reason.BAD_CONSTRAINT, "no way on")
    assert tuple(broken.tokens) == tuple(due[1].tokens[: len(broken.tokens)])
    for one, other in ((streams[0], due[0]), (streams[2], due[2])):
        assert isinstance(one.end, Finished) and one.tokens == other.tokens
    stats = house.core.stats()
    assert stats.requests[Outcome.FAILED] == 1 and stats.requests[Outcome.LENGTH] == 2
    house.close()


def test_the_plan_carries_what_it_does_not_look_at() -> None:
    class Opaque:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"the core asked for {name}")

    house, constraint = House(), Opaque()
    house.submit(prompt(20, 1), 4, constraint=constraint)
    house.submit(prompt(20, 2), 4)
    plan = house.step()
    assert plan is not None
    assert [admit.constraint is constraint for admit in plan.admits] == [True, False]
    house.close()


def test_m1_masks_are_reserved_for_and_only_where_there_are_some() -> None:
    facts = replace(toy_facts(), masked_bytes_per_row=1000)
    house = House(facts=facts)
    free = slots_bytes(facts, house.limits, [Demand(24)])
    rows = house.limits.draft_depth_max + 1
    held = slots_bytes(facts, house.limits, [Demand(24, 1000)])
    assert held - free == 1000 * rows
    house.submit(prompt(20, 1), 4, constraint="something")
    house.step()
    (demand,) = house.core._memory._slots.demands
    assert demand.draw_bytes_per_row == 1000
    house.close()

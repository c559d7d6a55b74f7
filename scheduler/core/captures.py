"""What becomes of a planned step, beside its rows: captures are stored, or all slots are lost.

- Promises end before anything is inserted, or the ledger would count a capture twice.
- A step that the device had no memory for takes every slot with it, for nobody knows what lies
  there. Whoever lives is parked, the oldest too, and goes on from what the tree has; what it lacks
  is evaluated again. The tree keeps what they lease and gives up half of the rest, so that the next
  try finds more room. What ended and was to be captured is not stored.
"""

from __future__ import annotations

from sapwood.scheduler.core.memory import DeviceMemory
from sapwood.scheduler.core.planner import PlannedStep
from sapwood.scheduler.core.roster import Roster
from sapwood.scheduler.result import StepResult


def store_captures(
    planned: PlannedStep, result: StepResult, roster: Roster, memory: DeviceMemory
) -> None:
    """What ended sequences left; whoever asks for it next finds it in the next plan."""
    step = planned.plan.number
    memory.end_promises()
    for sequence, payload in zip(planned.captured, result.captured, strict=True):
        if payload is not None:
            memory.insert(sequence, payload, step, turn_end=True)
        memory.forget(sequence, step)
    roster.storing.clear()


def lose_slots(planned: PlannedStep, roster: Roster, memory: DeviceMemory, now: float) -> int:
    """Nothing of the step happened and all slots are gone; returns how many were parked."""
    step, lost = planned.plan.number, tuple(roster.live.values())
    memory.lose_slots(step)
    roster.storing.clear()
    for sequence in lost:
        roster.park(sequence, now, "the device had no memory")
    for sequence in dict.fromkeys((*planned.captured, *lost)):
        memory.forget(sequence, step)
    return len(lost)

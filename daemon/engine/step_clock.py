"""The engine thread's own account of its steps: how long each phase took, and the last plan."""

from __future__ import annotations

import time
from collections import deque
from typing import NamedTuple

from sapwood.scheduler.histogram import Histogram, HistogramView
from sapwood.scheduler.plan import StepPlan

# Choose rows and depths; tell what the step before gave; make the graph; stand in calls of the
# device, which come between; take in the results.
PHASES = ("plan", "emit", "build", "device", "commit")
PHASE_BOUNDS_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
)  # fmt: skip
STEPS_KEPT = 32  # of the newest ones their times


class StepTimes(NamedTuple):
    """How long one finished step took, part by part, and what it was made of.

    begun_at: by perf_counter. draft_s: until its drafts were there, as the host saw it; 0 without
    any. target_s: from then on until its results were.
    """

    number: int
    begun_at: float
    plan_s: float
    emit_s: float
    draft_s: float
    target_s: float
    commit_s: float
    rows: int
    drafted: int
    read_tokens: int  # of prompts


class StepClock:
    """The engine thread's own account of its steps."""

    def __init__(self) -> None:
        self.plan: StepPlan | None = None
        self.unchecked = False  # steps ran since the core last checked itself
        self._turn_begun = 0.0
        self._begun = 0.0
        self._draft_s = 0.0
        self._newest: deque[StepTimes] = deque(maxlen=STEPS_KEPT)
        self._seconds: dict[str, float] = {}
        self._phases = {phase: Histogram(PHASE_BOUNDS_S) for phase in PHASES}

    def begin(self) -> None:
        """A turn of the loop begins; one that plans nothing is forgotten."""
        self._begun = self._turn_begun = time.perf_counter()
        self._seconds.clear()

    def planned(self, plan: StepPlan) -> None:
        """This turn has a step."""
        self.plan = plan
        self.unchecked = True

    def over(self, phase: str) -> None:
        """A phase is over, and the next begins."""
        now = time.perf_counter()
        self._seconds[phase] = now - self._begun
        self._begun = now

    def ran(self, device_s: float, drafted_at: float) -> None:
        """Build and device are over, which alternate: device_s of it was the device's.

        drafted_at: as StepRunner says; before this step where it drafted nothing.
        """
        self._draft_s = max(0.0, drafted_at - self._begun)
        self.over("build")
        self._seconds["build"] -= device_s
        self._seconds["device"] = device_s

    def finish(self) -> None:
        """The step is over: all phases are observed at once, so that their counts agree."""
        for phase, seconds in self._seconds.items():
            self._phases[phase].observe(seconds)
        self._newest.append(self._times())

    def newest(self) -> tuple[StepTimes, ...]:
        """The newest finished steps, the oldest of them first."""
        return tuple(self._newest)

    def phases(self) -> dict[str, HistogramView]:
        """Seconds by phase, of finished steps; the views do not change any more."""
        return {phase: histogram.view() for phase, histogram in self._phases.items()}

    def _times(self) -> StepTimes:
        seconds, plan = self._seconds, self.plan
        assert plan is not None, "a step without a plan is over"
        return StepTimes(
            number=plan.number,
            begun_at=self._turn_begun,
            plan_s=seconds["plan"],
            emit_s=seconds["emit"],
            draft_s=self._draft_s,
            target_s=seconds["build"] + seconds["device"] - self._draft_s,
            commit_s=seconds["commit"],
            rows=len(plan.decodes),
            drafted=sum(row.depth for row in plan.decodes),
            read_tokens=sum(len(piece.tokens) for piece in plan.prefills),
        )

    def story(self) -> str:
        """The last plan without a token in it, for the crash log."""
        plan = self.plan
        if plan is None:
            return "no step was planned"
        rows = [f"decode slot {d.slot} at {d.start} depth {d.depth}" for d in plan.decodes]
        rows += [f"prefill slot {p.slot} [{p.start}, {p.end})" for p in plan.prefills]
        rows += [f"admit slot {a.slot} at {a.target}" for a in plan.admits]
        rows += [f"grow slot {g.slot} to {g.room}" for g in plan.grows]
        rows += [f"capture slot {c.slot} [{c.start}, {c.end})" for c in plan.captures]
        rows += [f"release slot {slot}" for slot in plan.releases]
        return "\n".join([f"step {plan.number}:", *rows])

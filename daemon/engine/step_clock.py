"""The engine thread's own account of its steps: how long each phase took, and the last plan."""

from __future__ import annotations

import time

from sapwood.scheduler.histogram import Histogram, HistogramView
from sapwood.scheduler.plan import StepPlan

# Choose rows and depths; make the graph; emit, then wait for the device; take in the results.
PHASES = ("plan", "build", "device", "commit")
PHASE_BOUNDS_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
)  # fmt: skip


class StepClock:
    """The engine thread's own account of its steps."""

    def __init__(self) -> None:
        self.plan: StepPlan | None = None
        self.unchecked = False  # steps ran since the core last checked itself
        self._marks: list[float] = []
        self._phases = {phase: Histogram(PHASE_BOUNDS_S) for phase in PHASES}

    def begin(self, plan: StepPlan, started: float) -> None:
        """A plan that was begun at `started` (perf_counter) is made; idle looks do not count."""
        self.plan = plan
        self.unchecked = True
        self._marks = [started, time.perf_counter()]

    def mark(self) -> None:
        """The next phase is over."""
        self._marks.append(time.perf_counter())

    def finish(self) -> None:
        """The last phase is over; all four are observed at once, so that their counts agree."""
        self.mark()
        for phase, start, end in zip(PHASES, self._marks, self._marks[1:], strict=False):
            self._phases[phase].observe(end - start)

    def phases(self) -> dict[str, HistogramView]:
        """Seconds by phase, of finished steps; the views do not change any more."""
        return {phase: histogram.view() for phase, histogram in self._phases.items()}

    def story(self) -> str:
        """The last plan without a token in it, for the crash log."""
        plan = self.plan
        if plan is None:
            return "no step was planned"
        rows = [f"decode slot {d.slot} at {d.start} depth {d.depth}" for d in plan.decodes]
        rows += [f"prefill slot {p.slot} [{p.start}, {p.end})" for p in plan.prefills]
        rows += [f"admit slot {a.slot} at {a.target}" for a in plan.admits]
        rows += [f"capture slot {c.slot} [{c.start}, {c.end})" for c in plan.captures]
        rows += [f"release slot {slot}" for slot in plan.releases]
        return "\n".join([f"step {plan.number}:", *rows])

"""Where the time of a step goes: one histogram per phase, kept on the engine thread.

- plan: choose rows and depths; build: make the graph; device: wait for it; commit: take the results.
- `snapshot` is immutable; bucket counts are per bucket here and summed up where they are served.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

PHASES = ("plan", "build", "device", "commit")
BOUNDS_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PhaseTimes:
    """Per phase, in the order of PHASES: counts per bucket (one past the last bound), sum in s."""

    counts: tuple[tuple[int, ...], ...]
    sums: tuple[float, ...]


class StepPhases:
    """Observes phases of steps."""

    def __init__(self) -> None:
        self._counts = {phase: [0] * (len(BOUNDS_S) + 1) for phase in PHASES}
        self._sums = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.observe(phase, time.perf_counter() - start)

    def observe(self, phase: str, seconds: float) -> None:
        self._counts[phase][bisect_left(BOUNDS_S, seconds)] += 1
        self._sums[phase] += seconds

    def snapshot(self) -> PhaseTimes:
        return PhaseTimes(
            tuple(tuple(counts) for counts in self._counts.values()), tuple(self._sums.values())
        )

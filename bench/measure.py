"""What a benchmark found: ratios of two sides measured in the same run, and how far they scatter.

- A run measures both sides, one right after the other; which goes first alternates with the run, so
  that a machine that slows down slows both.
- The figure is the median over runs of the ratio within a run, never a ratio of two medians; a
  target may judge the worse quartile of these ratios instead.
- Every figure keeps its runs: whoever doubts a median can look.
- Pure: no clock, no device, no file.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

_T = TypeVar("_T")


class BenchError(Exception):
    """A benchmark could not be measured as it says. The message is for who ran it."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Five numbers of a sample, and its size."""

    median: float
    low_quartile: float
    high_quartile: float
    least: float
    most: float
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Quartiles interpolate between values; of one value all five are that value."""
        assert values, "a spread of nothing"
        low, median, high = (
            statistics.quantiles(values, n=4, method="inclusive")
            if len(values) > 1
            else (values[0],) * 3
        )
        return cls(median, low, high, min(values), max(values), len(values))


@dataclass(frozen=True, slots=True)
class Goal:
    """What must not be exceeded (`at most`) or fallen below (`at least`).

    judged: "median", or "worse quartile": the upper one of `at most`, the lower one of `at least`.
    """

    kind: str
    bound: float
    judged: str = "median"

    def met(self, value: float) -> bool:
        return value <= self.bound if self.kind == "at most" else value >= self.bound

    def judged_value(self, spread: Spread) -> float:
        """The one that the bound is for."""
        if self.judged == "median":
            return spread.median
        return spread.high_quartile if self.kind == "at most" else spread.low_quartile

    def __str__(self) -> str:
        return f"{'≤' if self.kind == 'at most' else '≥'} {self.bound:g}"


def at_most(bound: float, judged: str = "median") -> Goal:
    return Goal("at most", bound, judged)


def at_least(bound: float, judged: str = "median") -> Goal:
    return Goal("at least", bound, judged)


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a ratio: a value per run, in order."""

    name: str
    unit: str
    values: tuple[float, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"spread": asdict(Spread.of(self.values))}


@dataclass(frozen=True, slots=True)
class Figure:
    """`ours` divided by `peer`, run by run.

    name: BENCHMARK/FIGURE. target: None where the project promises nothing. details: counts that
    the ratio needs to be understood, from the same runs. disturbed: others computed beside a run.
    """

    name: str
    title: str
    ours: Side
    peer: Side
    target: Goal | None = None
    details: Mapping[str, float] = field(default_factory=dict)
    disturbed: bool = False

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.ours.values, self.peer.values, strict=True)]

    @property
    def spread(self) -> Spread:
        return Spread.of(self.ratios)

    @property
    def met(self) -> bool | None:
        """Whether what the target judges meets it; None without one."""
        if self.target is None:
            return None
        return self.target.met(self.target.judged_value(self.spread))

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "ratio": asdict(self.spread) | {"values": self.ratios},
            "target": None if self.target is None else asdict(self.target),
            "met": self.met,
            "ours": self.ours.as_json(),
            "peer": self.peer.as_json(),
            "details": dict(self.details),
            "disturbed": self.disturbed,
        }


def alternated(sides: Sequence[_T], run: int) -> list[_T]:
    """The order in which run number `run` measures its sides: forwards, then backwards."""
    return list(sides) if run % 2 == 0 else list(reversed(sides))

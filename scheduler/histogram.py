"""Counts of observations by size, and their frozen view."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HistogramView:
    """counts[i] observations were <= bounds[i] and above the bound before; the last: above all."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float

    @property
    def count(self) -> int:
        """Observations in all buckets."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """Of the observed values; 0 where there are none."""
        return self.total / self.count if self.count else 0.0


class Histogram:
    """Fixed buckets; view() is O(1) while nothing was observed since the last one."""

    __slots__ = ("_bounds", "_counts", "_total", "_view")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0
        self._view: HistogramView | None = None

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value`, in the unit of the bounds, as often as `times` says."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._total += value * times
        self._view = None

    def view(self) -> HistogramView:
        """The counts as they are now; later observations do not touch the view."""
        if self._view is None:
            self._view = HistogramView(self._bounds, tuple(self._counts), self._total)
        return self._view

"""A line through what was measured of late: seconds as a sum of what grows, by least squares.

- seconds = known + sum of coefficient * unit, all coefficients >= 0. Errors count relatively, so
  that a step which a stall made long counts little.
- A sample counts `kept` times less with each that follows: what is far back is forgotten.
- Where the samples cannot tell coefficients apart they are in the prior's proportion.
- Few sweeps for each sample, over the coefficients of what was in it: this runs in every step.
"""

from __future__ import annotations

from collections.abc import Sequence

_PULL = 0.02  # towards the prior's proportion, of all samples' weight: enough for whole steps
SCALE_MIN = 1e-12  # seconds of the prior's unit
FRESH_MAX = 1e9


class RecentLine:
    """Coefficients, in the prior's own unit until a sample was seen."""

    __slots__ = (
        "_fresh", "_gram", "_kept", "_prior", "_pull", "_right", "_sweeps", "_theta", "_weight",
        "scale",
    )  # fmt: skip

    def __init__(
        self, prior: Sequence[float], kept: float, pull: float = _PULL, sweeps: int = 1
    ) -> None:
        self._prior, self._kept, self._pull, self._sweeps = tuple(prior), kept, pull, sweeps
        self._gram = [[0.0] * len(prior) for _ in prior]
        self._right = [0.0] * len(prior)
        self._theta = [1.0] * len(prior)  # coefficients by the prior
        # What is new counts ever more, instead of what is old ever less: most of a sample is 0.
        self._fresh = 1.0
        self._weight = 0.0  # of all samples
        self.scale = 1.0  # seconds of the prior's unit

    @property
    def known(self) -> bool:
        """Whether a sample was seen."""
        return self._weight > 0.0

    @property
    def coefficients(self) -> list[float]:
        """Seconds of one more of each unit."""
        return [t * p for t, p in zip(self._theta, self._prior, strict=True)]

    def in_prior(self, units: Sequence[float]) -> float:
        """What the prior says of so many units."""
        return sum([unit * p for unit, p in zip(units, self._prior, strict=True)])

    def observe(
        self, units: Sequence[float], seconds: float, known: float = 0.0, weight: float = 1.0
    ) -> None:
        """A sample of so many units took `seconds` > 0, of which `known` are none of theirs."""
        prior = self._prior
        x = [(j, units[j] * prior[j] / seconds) for j in range(len(prior)) if units[j]]
        target, first = 1.0 - known / seconds, not self._weight
        self._fresh /= self._kept
        fresh = weight * self._fresh
        self._weight += fresh
        wanted = target / sum([value for _, value in x])
        self.scale = max(SCALE_MIN, self.scale + fresh / self._weight * (wanted - self.scale))
        if first:
            self._theta = [self.scale] * len(prior)
        self._add(x, target, fresh)
        for _ in range(self._sweeps):
            self._sweep([j for j, _ in x])
        if self._fresh > FRESH_MAX:
            self._renew()

    def _add(self, x: Sequence[tuple[int, float]], target: float, weight: float) -> None:
        right = self._right
        for i, value in x:
            row, weighted = self._gram[i], weight * value
            right[i] += weighted * target
            for j, other in x:
                row[j] += weighted * other

    def _sweep(self, which: Sequence[int]) -> None:
        """Once over these coefficients, from where the last sample left them."""
        theta, pull = self._theta, self._pull * self._weight / self.scale
        for j in which:
            row = self._gram[j]
            rest = sum([a * b for a, b in zip(row, theta, strict=True)]) - row[j] * theta[j]
            theta[j] = max(0.0, (self._right[j] + pull - rest) / (row[j] + pull / self.scale))

    def _renew(self) -> None:
        by = 1.0 / self._fresh
        self._gram = [[by * value for value in row] for row in self._gram]
        self._right = [by * value for value in self._right]
        self._weight *= by
        self._fresh = 1.0

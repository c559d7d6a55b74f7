"""A depth policy in closed loop with a device of known cost and drafts of known quality.

What a policy is worth is judged without luck: the tokens that its depths give in expectation, in
the seconds that they cost. Luck and noise are only in what the policy itself gets to see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import exp
from random import Random

from sapwood.scheduler.limits import Limits
from sapwood.scheduler.policy.depth import DepthPolicy, Row
from sapwood.scheduler.policy.step_cost import StepCost, StepShape

DEPTH_MAX = Limits().draft_depth_max
CONTEXT = 500
UNIT_S = 0.013

Cost = Callable[[StepShape], float]
Noise = Callable[[Random], Iterator[float]]


def linear(base: float, row: float, draft: float, iteration: float) -> Cost:
    return lambda s: base + row * s.rows + draft * s.drafted + iteration * s.iterations


def bent(tokens: int, each: float, iteration: float) -> Cost:
    """Flat until a step has so many tokens, then `each` for every one more."""

    def cost(s: StepShape) -> float:
        packed = s.rows + s.drafted
        beyond = max(packed - tokens, 0)
        return 1.0 + 0.004 * packed + each * beyond + iteration * s.iterations

    return cost


def stairs(tokens: int, rise: float, iteration: float) -> Cost:
    """A kernel's tiles: dearer by `rise` with every so many tokens."""
    return lambda s: 1.0 + rise * ((s.rows + s.drafted - 1) // tokens) + iteration * s.iterations


COSTS: dict[str, Cost] = {
    "flat": linear(1.0, 0.01, 0.001, 0.01),  # a large model that is bound by its weights
    "steep": linear(0.1, 0.2, 1.0, 0.2),  # every token costs what a step costs
    "cpu": linear(1.0, 0.09, 0.09, 0.10),  # about what a packed step on two cores costs
    "bent8": bent(8, 0.05, 0.08),
    "bent32": bent(32, 0.05, 0.03),
    "stairs16": stairs(16, 0.8, 0.03),
    "drafter": linear(1.0, 0.02, 0.02, 0.5),  # half of a step for one draft of everybody
}


def geometric(quality: float) -> list[float]:
    """The same chance at every position."""
    return [quality] * DEPTH_MAX


def falling(quality: float) -> list[float]:
    """Less with every position, as real drafters."""
    return [quality * (1.0 - 0.08 * position) for position in range(DEPTH_MAX)]


def quiet(_: Random) -> Iterator[float]:
    while True:
        yield 1.0


def lognormal(random: Random) -> Iterator[float]:
    while True:
        yield exp(random.gauss(0.0, 0.25))


def neighbour(random: Random) -> Iterator[float]:
    """Somebody doubles everything for a while, and goes away for a while: tens of steps each."""
    while True:
        for slow in (1.0, 2.0):
            for _ in range(int(random.expovariate(1 / 40)) + 1):
                yield slow * exp(random.gauss(0.0, 0.08))


def bursts(random: Random) -> Iterator[float]:
    """Three steps in ten take three times as long."""
    while True:
        yield exp(random.gauss(0.0, 0.15)) * (3.0 if random.random() < 0.3 else 1.0)


def predicted(cost: StepCost, shape: StepShape) -> float:
    """Seconds of a step now, by what was learned."""
    return (cost.decode_s(shape) + cost.slices.of(shape.reading)) * cost.level


def tokens_of(chances: Sequence[float], depth: int) -> float:
    """What a round of this depth gives, in expectation."""
    found, chance = 1.0, 1.0
    for each in chances[:depth]:
        chance *= each
        found += chance
    return found


def best_rate(cost: Cost, chances: Sequence[float], rows: int) -> float:
    """Of the best one depth for all rows and all steps."""
    return max(fixed_rate(cost, chances, rows, depth) for depth in range(DEPTH_MAX + 1))


def fixed_rate(cost: Cost, chances: Sequence[float], rows: int, depth: int) -> float:
    shape = StepShape(rows, rows * depth, depth, CONTEXT * rows)
    return rows * tokens_of(chances, depth) / cost(shape)


class World:
    """Rows whose drafts are accepted by one law, a cost, and the policy in between.

    reply: lengths of replies, drawn between the two; None: nobody ends.
    """

    def __init__(
        self,
        cost: Cost,
        chances: Sequence[float],
        rows: int,
        noise: Noise = quiet,
        seed: int = 1,
        reply: tuple[int, int] | None = None,
    ) -> None:
        self.cost, self.chances = cost, list(chances)
        self.policy = DepthPolicy(DEPTH_MAX)
        self.depths: list[list[int]] = []
        self._reply = reply
        self._random = Random(seed)
        self._noise = noise(Random(seed + 1))
        self._draftings = [self.policy.drafting() for _ in range(rows)]
        self._left = [self._length() for _ in range(rows)]
        self._tokens: list[float] = []
        self._seconds: list[float] = []

    def run(self, steps: int) -> float:
        """The rate of these steps."""
        begin = len(self.depths)
        for _ in range(steps):
            self.step()
        return self.rate(begin)

    def rate(self, begin: int, end: int | None = None) -> float:
        """Of the steps [begin, end), expected tokens a second of quiet."""
        return sum(self._tokens[begin:end]) / sum(self._seconds[begin:end])

    def resize(self, rows: int) -> None:
        """From the next step on there are so many rows."""
        del self._draftings[rows:], self._left[rows:]
        while len(self._draftings) < rows:
            self._draftings.append(self.policy.drafting())
            self._left.append(self._length())

    def step(self) -> None:
        rows = [
            Row(drafting, min(DEPTH_MAX, left - 1), CONTEXT)
            for drafting, left in zip(self._draftings, self._left, strict=True)
        ]
        depths = self.policy.choose(rows)
        for row, depth in enumerate(depths):
            self._round(row, depth)
        shape = StepShape(len(depths), sum(depths), max(depths), CONTEXT * len(depths))
        seconds = self.cost(shape)
        self.policy.observe_step(shape, UNIT_S * seconds * next(self._noise))
        self._tokens.append(sum(tokens_of(self.chances, depth) for depth in depths))
        self._seconds.append(seconds)
        self.depths.append(depths)

    def _round(self, row: int, depth: int) -> None:
        accepted = 0
        while accepted < depth and self._random.random() < self.chances[accepted]:
            accepted += 1
        self.policy.observe_row(self._draftings[row], depth, accepted)
        self._left[row] -= accepted + 1
        if self._left[row] <= 0:
            self._draftings[row], self._left[row] = self.policy.drafting(), self._length()

    def _length(self) -> int:
        return 1 << 30 if self._reply is None else self._random.randint(*self._reply)

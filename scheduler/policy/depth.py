"""How many tokens each row drafts, chosen for all rows of a step together.

- Depths maximise expected committed tokens per second. With rate r, a further draft of a row is
  worth its price when the chance that it is emitted exceeds r times its marginal cost; a further
  draft iteration when what all rows gain by it exceeds r times its cost. r is found by iteration
  (Dinkelbach), so the answer is the joint optimum under the cost model, depth 0 included.
- Acceptance is kept per draft position, per sequence; a position that the sequence has not tried
  yet borrows the model's, and one that nobody tried borrows its predecessor's.
- What is not tried is not known: a row tries one more than it would choose (from depth 0 that is
  its way out of parking), and now and then nobody drafts, so that the cost of plain decoding is
  measured and not guessed. Both back off by doubling, and rows try together, because an iteration
  is paid once for all.
- Deterministic: no randomness, no clock; the core measures a step from its plan to its commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sapwood.scheduler.policy.step_cost import LEAST, StepCost, StepShape

ACCEPTANCE_START = 0.6  # nobody has drafted yet
SEQUENCE_RATE = 0.05
MODEL_RATE = 0.02
GAIN_MIN = 0.03  # a draft less likely to be emitted is never worth it, however cheap it looks
PROBE_STEPS_MIN = 16
PROBE_STEPS_MAX = 512
PLAIN_STEPS_MIN = 4
RATE_ITERATIONS = 6


class Acceptance:
    """Chance that the draft at a position is accepted, given that all before it were. 0-based."""

    __slots__ = ("_counts", "_rate", "_values")

    def __init__(self, depth_max: int, rate: float) -> None:
        self._rate = rate
        self._values = [0.0] * depth_max
        self._counts = [0] * depth_max

    def get(self, position: int) -> float | None:
        """None where the position has no sample yet."""
        return self._values[position] if self._counts[position] else None

    def observe(self, position: int, accepted: bool, before: float) -> None:
        """`before` is what was believed of a position that has no sample yet: it counts as two."""
        count = self._counts[position]
        value = self._values[position] if count else before
        weight = max(self._rate, 1.0 / (count + 3))
        self._values[position] = value + weight * (accepted - value)
        self._counts[position] = count + 1


class Drafting:
    """What the policy remembers of one sequence."""

    __slots__ = ("acceptance", "chosen", "probe_steps")

    def __init__(self, depth_max: int) -> None:
        self.acceptance = Acceptance(depth_max, SEQUENCE_RATE)
        self.chosen = -1
        self.probe_steps = PROBE_STEPS_MIN


@dataclass(frozen=True, slots=True)
class Row:
    """One decoding sequence of the step: at most `depth_max` drafts, exactly `pinned` if given."""

    drafting: Drafting
    depth_max: int
    context_tokens: int
    pinned: int | None = None


class DepthPolicy:
    """Chooses depths and learns from what became of them."""

    def __init__(self, depth_max: int) -> None:
        """depth_max 0: there is no drafter."""
        self.depth_max = depth_max
        self.parked_rows = 0
        self._model = Acceptance(depth_max, MODEL_RATE)
        self._cost = StepCost()
        self._step = 0
        self._plain_due: dict[int, tuple[int, int]] = {}  # size class: (steps left, interval)

    def drafting(self) -> Drafting:
        """For a new sequence, which keeps it: nothing is known of its drafts yet."""
        return Drafting(self.depth_max)

    def choose(self, rows: Sequence[Row], prefill_tokens: int) -> list[int]:
        """One depth per row, for a step that also evaluates `prefill_tokens`."""
        self.parked_rows = 0
        if not rows:
            return []
        self._step += 1
        if not self.depth_max:
            return [0] * len(rows)
        gains = [self.gains(row) for row in rows]
        depths = self._best(rows, gains, prefill_tokens)
        self.parked_rows = sum(
            not depth and row.pinned is None and row.depth_max > 0
            for row, depth in zip(rows, depths, strict=True)
        )
        if self._plain_step(rows, depths):
            return [row.pinned or 0 for row in rows]
        return [self._probed(row, depth) for row, depth in zip(rows, depths, strict=True)]

    def observe_row(self, drafting: Drafting, drafted: int, accepted: int) -> None:
        """A round verified `drafted` drafts and accepted the first `accepted`."""
        before = ACCEPTANCE_START
        for position in range(min(drafted, accepted + 1)):
            hit = position < accepted
            model = self._model.get(position)
            before = before if model is None else model
            drafting.acceptance.observe(position, hit, before)
            self._model.observe(position, hit, before)

    def observe_step(self, shape: StepShape, seconds: float) -> None:
        """`seconds` as in StepCost.observe. Not for a step that copied a prefix in or out."""
        self._cost.observe(shape, seconds)

    def gains(self, row: Row) -> list[float]:
        """gains[j] is the chance that the row's draft j + 1 is emitted; never increasing."""
        chance, believed = 1.0, ACCEPTANCE_START
        gains = []
        for position in range(row.depth_max if row.pinned is None else row.pinned):
            own = row.drafting.acceptance.get(position)
            model = self._model.get(position) if own is None else own
            believed = believed if model is None else model
            chance *= believed
            gains.append(chance)
        return gains

    def _best(
        self, rows: Sequence[Row], gains: list[list[float]], prefill_tokens: int
    ) -> list[int]:
        pinned = [row.pinned or 0 for row in rows]
        free = [[] if row.pinned is not None else g for row, g in zip(rows, gains, strict=True)]
        fixed_tokens = len(rows) + sum(
            sum(g) for row, g in zip(rows, gains, strict=True) if row.pinned is not None
        )
        floor = max(pinned)  # iterations that happen anyway
        context = sum(row.context_tokens for row in rows)
        shape = StepShape(len(rows), sum(pinned), floor, context, prefill_tokens)
        fixed_seconds = self._cost.predict(shape)
        iterations = self._cost.iterations(shape.size_class, self.depth_max)
        extra = [cost - iterations[floor] for cost in iterations]
        extra[: floor + 1] = [0.0] * (floor + 1)
        chosen = pinned
        rate = fixed_tokens / fixed_seconds
        for _ in range(RATE_ITERATIONS):
            price = max(rate * self._cost.per_draft, GAIN_MIN)
            depth = _best_iterations(free, price, [rate * cost for cost in extra])
            depths = [_affordable(g, price, depth) for g in free]
            tokens = fixed_tokens + sum(sum(g[:d]) for g, d in zip(free, depths, strict=True))
            seconds = fixed_seconds + self._cost.per_draft * sum(depths) + extra[max(depths)]
            seconds = max(seconds, LEAST * fixed_seconds)
            if tokens / seconds <= rate:
                break
            rate = tokens / seconds
            chosen = [max(p, d) for p, d in zip(pinned, depths, strict=True)]
        return chosen

    def _plain_step(self, rows: Sequence[Row], depths: list[int]) -> bool:
        """Whether this step is spent on learning what it costs when nobody drafts."""
        if not any(depths) or any(row.pinned for row in rows):
            return False
        size_class = len(rows).bit_length()
        left, interval = self._plain_due.get(size_class, (PLAIN_STEPS_MIN, PLAIN_STEPS_MIN))
        if left:
            self._plain_due[size_class] = (left - 1, interval)
            return False
        interval = min(2 * interval, PROBE_STEPS_MAX)
        self._plain_due[size_class] = (interval, interval)
        return True

    def _probed(self, row: Row, depth: int) -> int:
        """`depth`, or one more where it is time to look whether more would be accepted by now."""
        drafting = row.drafting
        if row.pinned is not None:
            return depth
        if depth > drafting.chosen >= 0:
            drafting.probe_steps = PROBE_STEPS_MIN
        drafting.chosen = depth
        if depth >= row.depth_max or self._step % drafting.probe_steps:
            return depth
        drafting.probe_steps = min(2 * drafting.probe_steps, PROBE_STEPS_MAX)
        return depth + 1


def _affordable(gains: Sequence[float], price: float, depth_max: int) -> int:
    """How many of a row's first drafts are worth their price; gains never increase."""
    depth = 0
    for gain in gains[:depth_max]:
        if gain <= price:
            break
        depth += 1
    return depth


def _best_iterations(
    free: Sequence[Sequence[float]], price: float, iteration_prices: Sequence[float]
) -> int:
    """The number of iterations whose surplus over all rows, less their own price, is largest."""
    surplus: list[float] = []
    for gains in free:
        for level, gain in enumerate(gains):
            if gain <= price:
                break
            if level == len(surplus):
                surplus.append(0.0)
            surplus[level] += gain - price
    best, best_value, value = 0, 0.0, 0.0
    for level, gained in enumerate(surplus, 1):
        value += gained
        if value - iteration_prices[level] > best_value:
            best, best_value = level, value - iteration_prices[level]
    return best

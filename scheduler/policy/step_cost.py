"""What a step costs in seconds, learned from the steps themselves.

- seconds = base + rows + drafted tokens + draft iterations + context, each times a coefficient
  >= 0, plus prefill tokens times theirs. Drafts of one iteration are drawn together for all rows,
  so the deepest row decides the iterations.
- Decode steps are remembered as running means by (size class of rows, iterations), and the line is
  fitted through the means: a depth that was not tried for a while is not forgotten, and one that is
  tried all the time cannot outvote it. Rejected: exponential forgetting over all samples, which
  keeps nothing but the depth in use and then cannot say what plain decoding would cost.
- Real costs have edges where the kernels change, so a depth that was measured is priced by its own
  mean, and the line only carries it to other features.
- A step with a prefill never moves the decode coefficients; its excess over the predicted decode
  goes to the prefill coefficient.
- One sample moves a mean by at most a factor; only a run of samples on one side moves it far, so a
  host stall does not, and a real change does within a few steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TRUST = 1.25  # a lone sample counts as at most this factor away from its mean
RATE = 0.1  # weight of a sample in a settled mean
LEAST = 0.01  # bounds what a prediction may fall to below what was seen
COUNT_MAX = 8  # a mean of this many samples has full weight
OTHER_CLASS = 0.1  # weight of means from steps of another size class
SHRINK = 0.02  # pull towards the prior shape where the samples cannot tell features apart
SWEEPS = 8
# Base, a row, a drafted token, a draft iteration, 1024 tokens of context: only the ratios count.
PRIOR = (1.0, 0.02, 0.06, 0.08, 0.005)

Vector = list[float]


@dataclass(frozen=True, slots=True)
class StepShape:
    """What a step's time depends on. `context_tokens` is summed over its decode rows."""

    rows: int
    drafted: int
    iterations: int
    context_tokens: int
    prefill_tokens: int = 0

    @property
    def size_class(self) -> int:
        """Steps whose rows have as many binary digits cost alike: 1, 2 to 3, 4 to 7, ..."""
        return self.rows.bit_length()

    def features(self) -> Vector:
        """In the order of PRIOR, context in units of 1024 tokens."""
        return [1.0, self.rows, self.drafted, self.iterations, self.context_tokens / 1024]


class Mean:
    """Running mean of positive numbers in which one outlier cannot move much."""

    __slots__ = ("_streak", "count", "rate", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self.count = 0
        self.rate = 1.0
        self._streak = 0  # samples in a row beyond TRUST, negative below

    def add(self, sample: float) -> None:
        """`rate` is the weight that this sample got, for who averages something along with it."""
        self.count += 1
        if self.count == 1:
            self.value = sample
            return
        factor = 1.0 + (TRUST - 1.0) * 2.0 ** min(abs(self._streak), 16)
        bounded = min(max(sample, self.value / factor), self.value * factor)
        self._streak = self._next_streak(sample)
        settled = abs(self._streak) < 3
        self.rate = max(RATE, 1.0 / self.count) if settled else 0.5
        self.value += self.rate * (bounded - self.value)

    def _next_streak(self, sample: float) -> int:
        if sample > self.value * TRUST:
            return max(self._streak, 0) + 1
        if sample < self.value / TRUST:
            return min(self._streak, 0) - 1
        return 0


class _Bucket:
    """Mean time and mean features of the steps of one kind."""

    __slots__ = ("features", "seconds")

    def __init__(self, features: Vector) -> None:
        self.features = features
        self.seconds = Mean()

    def add(self, features: Vector, seconds: float) -> None:
        self.seconds.add(seconds)
        rate = self.seconds.rate
        self.features = [
            old + rate * (new - old) for old, new in zip(self.features, features, strict=True)
        ]


class StepCost:
    """Predicts a step's seconds; `per_draft` and `iterations` are its marginal costs."""

    __slots__ = ("_buckets", "_coefficients", "_prefill")

    def __init__(self) -> None:
        self._buckets: dict[tuple[int, int], _Bucket] = {}
        self._coefficients: Vector = list(PRIOR)
        self._prefill = Mean()

    @property
    def per_draft(self) -> float:
        """Seconds of one more draft, without its iteration."""
        return self._coefficients[2]

    def iterations(self, size_class: int, iterations_max: int) -> Vector:
        """Seconds of 0 to `iterations_max` iterations without their drafts, in that class."""
        each = self._coefficients[3]
        return [each * n + self._edge(size_class, n) for n in range(iterations_max + 1)]

    def predict(self, shape: StepShape) -> float:
        """Seconds of a step; of its decode part alone, in PRIOR's unit, until one was seen."""
        if not self._buckets:
            return self._decode(shape)
        return self._decode(shape) + self._prefill.value * shape.prefill_tokens

    def observe(self, shape: StepShape, seconds: float) -> None:
        """`seconds` from the step's plan to its commit, as the engine's clock saw it."""
        if seconds <= 0.0:
            return
        if shape.prefill_tokens:
            self._observe_prefill(shape, seconds)
        elif shape.rows:
            self._observe_decode(shape, seconds)

    def _decode(self, shape: StepShape) -> float:
        line = self._line(shape.features())
        return max(line + self._edge(shape.size_class, shape.iterations), LEAST * line)

    def _line(self, features: Vector) -> float:
        return sum(c * x for c, x in zip(self._coefficients, features, strict=True))

    def _edge(self, size_class: int, iterations: int) -> float:
        """How far the steps of one kind lie off the line, as far as there are enough of them."""
        bucket = self._buckets.get((size_class, iterations))
        if bucket is None:
            return 0.0
        count = bucket.seconds.count
        return (bucket.seconds.value - self._line(bucket.features)) * count / (count + 1)

    def _observe_prefill(self, shape: StepShape, seconds: float) -> None:
        """Before the first decode step nothing is known to subtract, in any unit of time."""
        decode = self._decode(shape) if self._buckets else 0.0
        floor = 0.1 * seconds  # a decode part predicted too long must not make prefill free
        self._prefill.add(max(seconds - decode, floor) / shape.prefill_tokens)

    def _observe_decode(self, shape: StepShape, seconds: float) -> None:
        features = shape.features()
        key = (shape.size_class, shape.iterations)
        bucket = self._buckets.get(key)
        if bucket is None:
            seconds = self._believable(shape, seconds)
            bucket = self._buckets[key] = _Bucket(features)
        bucket.add(features, seconds)
        self._coefficients = self._fit(shape.size_class)

    def _believable(self, shape: StepShape, seconds: float) -> float:
        """The first sample of a kind, bounded by what the other kinds, if any, let expect."""
        if not self._buckets:
            return seconds
        expected = self._decode(shape)
        return min(max(seconds, expected / 2.0), expected * 2.0)

    def _fit(self, size_class: int) -> Vector:
        """Non-negative least squares through the means, near ones first, by coordinate descent."""
        size = len(PRIOR)
        gram = [[0.0] * size for _ in range(size)]
        right = [0.0] * size
        for (other, _), bucket in self._buckets.items():
            nearness = 1.0 if other == size_class else OTHER_CLASS
            weight = nearness * min(bucket.seconds.count, COUNT_MAX)
            _accumulate(gram, right, bucket.features, bucket.seconds.value, weight)
        prior = self._scaled_prior()
        for j in range(size):
            pull = SHRINK * gram[j][j] + 1e-12
            gram[j][j] += pull
            right[j] += pull * prior[j]
        fitted = _solve(gram, right, self._coefficients)
        fastest = min(bucket.seconds.value for bucket in self._buckets.values())
        fitted[0] = max(fitted[0], LEAST * fastest)  # no step is free, whatever the samples say
        return fitted

    def _scaled_prior(self) -> Vector:
        """PRIOR in seconds: scaled to the level of all means together."""
        seconds, shape = 0.0, 0.0
        for bucket in self._buckets.values():
            seconds += bucket.seconds.value
            shape += sum(p * x for p, x in zip(PRIOR, bucket.features, strict=True))
        return [p * seconds / shape for p in PRIOR]


def _accumulate(
    gram: list[Vector], right: Vector, x: Sequence[float], y: float, weight: float
) -> None:
    """Lower triangle and diagonal of weight * x xT; _solve reads no more."""
    for i, xi in enumerate(x):
        wx = weight * xi
        if wx:
            row = gram[i]
            right[i] += wx * y
            for j in range(i + 1):
                row[j] += wx * x[j]


def _solve(gram: list[Vector], right: Vector, start: Vector) -> Vector:
    """argmin over t >= 0 of t' G t / 2 - right' t, where G is given by its lower triangle."""
    theta = list(start)
    size = len(theta)
    full = [[gram[max(i, j)][min(i, j)] for j in range(size)] for i in range(size)]
    for _ in range(SWEEPS):
        for j, row in enumerate(full):
            rest = sum(g * t for g, t in zip(row, theta, strict=True)) - row[j] * theta[j]
            theta[j] = max(0.0, (right[j] - rest) / row[j])
    return theta

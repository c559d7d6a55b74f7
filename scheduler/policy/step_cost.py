"""What steps cost beside each other, learned from the steps themselves.

- Steps are told apart by their kind: the piece of the curve that their packed tokens lie on, their
  draft iterations, and whether all rows go equally deep. A kind is remembered by its mean: what was
  not tried for a while is not forgotten, and what is tried all the time cannot outvote it. A line
  is fitted through the means (cost_line) and carries them to what was not measured; what was is
  priced by its own mean.
- Whatever slows or speeds all steps alike, a neighbour on the same cores, heat, is a level and no
  cost: a step is judged beside those right before it. So a plain step that fell into a busy moment
  does not make drafts look cheap. What the level takes away no choice among depths could want.
- What disturbs a step makes it slower and never quicker: of a kind's newest samples, and of the
  newest steps for the level, the upper end of the lowest third is believed. One sample of a new
  kind may be any of these, so one that is far above what was expected says that it wants another.
- The line is fitted when somebody asks for prices and a mean has moved, and at no other time.
- A step that reads prompts too tells what its slices take (slice_cost), and nothing of its rows:
  of one sum only one part can be learned. So while prompts are read there is now and then a step
  with one token of them (wants_look), which counts as one without.
- A step that copies prefixes teaches a kind only what no other step does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sapwood.scheduler.policy.cost_line import (
    CONTEXT,
    DRAFT,
    ITERATION,
    KNOTS,
    LEAST,
    SLOPES,
    CostLine,
    Vector,
    features,
    piece_of,
)
from sapwood.scheduler.policy.slice_cost import NO_READING, Reading, SliceCost

RATE = 0.1  # weight of a sample in a settled mean
LEVEL_STEPS = 9
KIND_SAMPLES = 8
KIND_LOOKS = 3  # so often a new kind is looked at that took SURPRISE times what was expected
SURPRISE = 1.3
COUNT_SETTLED = 4  # from so many samples on a mean is believed enough to judge others by it
FIT_SHARE = 0.05  # a settled mean that moved by more is worth a fit
BELIEVED_MAX = 2.5  # the most that a kind's first sample may be of what was expected
OVER = 0.6  # of the level, and less: a slow spell is over
KINDS_MAX = 64
STALE_STEPS = 64  # a kind that was not seen for so long learns from a step that copies, too
COPYING_STEPS = 32  # the newest, of which is known how many copied
LOOK_STEPS = 32  # after so many steps with slices a kind is looked at once without
LOOK_YOUNG_STEPS = 16  # so many where it is not settled: the line knows something of it, too
LOOK_APART = 4  # and so many where one was not looked at yet, or slices deny what it takes


KindName = tuple[int, int, bool]


def kind_name(rows: int, drafted: int, iterations: int) -> KindName:
    """The piece of the curve, the iterations, and whether all rows are as deep as the deepest."""
    return piece_of(rows + drafted), iterations, drafted == rows * iterations


@dataclass(frozen=True, slots=True)
class StepShape:
    """What a step's time depends on. `context_tokens` is summed over its decode rows.

    reading: of prompts. copied: the step also copied a prefix in or out.
    """

    rows: int
    drafted: int
    iterations: int
    context_tokens: int
    reading: Reading = NO_READING
    copied: bool = False

    @property
    def tokens(self) -> int:
        """Packed tokens of the decode rows."""
        return self.rows + self.drafted

    @property
    def kind(self) -> KindName:
        """Steps of one kind cost alike."""
        return kind_name(self.rows, self.drafted, self.iterations)

    def features(self) -> Vector:
        """As a CostLine takes them."""
        return features(self.tokens, self.drafted, self.iterations, self.context_tokens)


class _Kind:
    """Typical time and mean features of the steps of one kind.

    seconds: of the newest samples the upper end of the lowest third, so that bursts count little
    and a change is followed once it has two thirds. expected: by other kinds, before the first.
    """

    __slots__ = ("_newest", "count", "expected", "features", "fitted", "seconds", "seen", "step")

    def __init__(self) -> None:
        self.features: Vector = []
        self.seconds = 0.0
        self.count = 0
        self.expected = 0.0
        self.fitted = 0.0  # the seconds that the line was fitted through
        self.step = 0  # of its newest sample
        self.seen = 0  # of the newest step of its kind that read nothing
        self._newest: deque[float] = deque(maxlen=KIND_SAMPLES)

    def add(self, x: Vector, seconds: float) -> None:
        self.count += 1
        self._newest.append(seconds)
        self.seconds = _low(self._newest)
        rate, pairs = max(RATE, 1.0 / self.count), zip(self.features or x, x, strict=True)
        self.features = [old + rate * (new - old) for old, new in pairs]

    @property
    def moved(self) -> bool:
        """Whether it is worth a fit."""
        young = self.count <= COUNT_SETTLED
        return young or abs(self.seconds - self.fitted) > FIT_SHARE * self.fitted


@dataclass(frozen=True, slots=True)
class Prices:
    """Seconds of a step of `rows` by what it drafts, at the level of no matter when.

    slopes: seconds of one more token on each piece of the curve, its draft included.
    """

    rows: int
    slopes: Vector
    _fixed: float
    _curve: Vector
    _draft: float
    _iteration: float
    _offsets: Mapping[KindName, float]
    _kinds: Mapping[KindName, _Kind]

    def known(self, drafted: int, iterations: int) -> bool:
        """Whether there are enough steps of this kind to believe what is said of it."""
        kind = self._kinds.get(kind_name(self.rows, drafted, iterations))
        return kind is not None and kind.count >= COUNT_SETTLED

    def seconds(self, drafted: int, iterations: int) -> float:
        """Of a step with as many drafts, the deepest row with as many as there are iterations."""
        tokens = self.rows + drafted
        piece = piece_of(tokens)
        begun = KNOTS[piece]
        line: float = self._fixed + self._curve[piece] + self._draft * (begun - self.rows)
        line += self.slopes[piece] * (tokens - begun) + self._iteration * iterations
        name = piece, iterations, drafted == self.rows * iterations
        return max(line + self._offsets.get(name, 0.0), LEAST * line)


class StepCost:
    """Learns from steps, predicts them, and gives the prices that a choice goes by."""

    __slots__ = (
        "_kinds", "_line", "_moved", "_offsets", "_ratios", "_since_look",
        "_step", "copying", "iterations_seen", "level", "rows_overpriced", "slices", "surprised",
        "tokens_seen",
    )  # fmt: skip

    def __init__(self) -> None:
        self.iterations_seen = -1  # the most of a step so far
        self.tokens_seen = 0
        self.copying = 0.0  # the share of the newest steps with rows that copied, too
        self.surprised = False  # by the newest step, so that it is worth another look
        self.rows_overpriced = False  # the newest step with slices took less than its rows may
        self._line = CostLine()
        self._kinds: dict[KindName, _Kind] = {}  # the one learned of last comes last
        self._offsets: dict[KindName, float] = {}
        self._moved = False
        self.slices = SliceCost()  # at the level of 1, as all that is learned
        self.level = 1.0  # how slow steps are now: by the newest ratios
        # Of the newest steps of known kinds: seconds by what was expected.
        self._ratios: deque[tuple[_Kind, float]] = deque(maxlen=LEVEL_STEPS)
        self._step = 0
        self._since_look = 0  # steps with slices since the last one as good as without

    def prices(self, rows: int, context_tokens: int) -> Prices:
        """For a step of `rows`. Fits, where a mean has moved."""
        line = self._fitted()
        theta = line.coefficients
        draft = theta[DRAFT]
        fixed = theta[0] + theta[CONTEXT] * context_tokens / 1024
        slopes = [theta[k] + draft for k in SLOPES]
        curve, iteration = line.curve(), theta[ITERATION]
        return Prices(rows, slopes, fixed, curve, draft, iteration, self._offsets, self._kinds)

    def decode_s(self, shape: StepShape) -> float:
        """Seconds of a step's decode part alone, at the level of 1, as `slices` are."""
        prices = self.prices(shape.rows, shape.context_tokens)
        seconds = prices.seconds(shape.drafted, shape.iterations)
        return seconds if self._kinds else seconds * self.slices.unit_s

    @property
    def base_s(self) -> float:
        """Seconds of a step by itself, now."""
        base = self._fitted().coefficients[0] if self._kinds else self.slices.unit_s
        return base * self.level

    def wants_look(self, shape: StepShape) -> bool:
        """Whether what rows take is to be seen once more, without slices that hide it."""
        if self._since_look < LOOK_APART:
            return False
        kind = self._kinds.get(shape.kind)
        if kind is None:
            return True
        wait = LOOK_STEPS if kind.count >= COUNT_SETTLED else LOOK_YOUNG_STEPS
        return self._step - kind.seen >= (LOOK_APART if self.rows_overpriced else wait)

    def observe(self, shape: StepShape, seconds: float) -> None:
        """`seconds` from the step's plan to its commit, as the engine's clock saw it."""
        if seconds <= 0.0:
            return
        self._step += 1
        self.surprised = False
        if shape.reading.tokens:
            self._since_look = 0 if shape.reading.light else self._since_look + 1
        if shape.rows:
            self.iterations_seen = max(self.iterations_seen, shape.iterations)
            self.tokens_seen = max(self.tokens_seen, shape.tokens)
            self.copying += (shape.copied - self.copying) / COPYING_STEPS
        if shape.reading.tokens and not (shape.rows and shape.reading.light):
            self._observe_slices(shape, seconds / self._level_seen(shape, seconds))
        elif shape.rows:
            others_s = self.slices.of(shape.reading, shape.copied) if self.slices.known else 0.0
            rows_s = max(seconds - others_s * self.level, 0.5 * seconds)
            if shape.copied:
                self._observe_copies(shape, rows_s)
            else:
                self._observe_plain(shape, rows_s)

    def _observe_plain(self, shape: StepShape, seconds: float) -> None:
        """A step of decode rows alone."""
        x, kind = shape.features(), self._kinds.get(shape.kind)
        if kind is None or kind.count < COUNT_SETTLED:
            self._learn(shape, x, seconds / self._level_seen(shape, seconds))
            self._kinds[shape.kind].seen = self._step
            return
        kind.seen = self._step
        # A run of one kind says nothing of others, and against a level made of itself it would
        # drift, or never leave what it was first taken for: it learns from the others around it.
        others = [ratio for other, ratio in self._ratios if other is not kind]
        if len(others) > LEVEL_STEPS // 2:
            self._learn(shape, x, seconds / _low(others))
        own = self._line.seconds(kind.features)
        expected = kind.seconds * (self._line.seconds(x) / own if own > 0.0 else 1.0)
        self._ratios.append((kind, seconds / expected))
        self.level = _low([ratio for _, ratio in self._ratios])

    def _level_seen(self, shape: StepShape, seconds: float) -> float:
        """The level for what is not settled: not a slow one that the newest ratio or this denies.

        Else, when a slow spell ends among kinds that are new, these would be taken for cheap,
        settle so, and confirm the level from then on. What differs by less than OVER is chance: to
        go by the lower of two whenever they differ would make all that is learned dearer.
        """
        newest = self._ratios[-1][1] if self._ratios else 1.0
        if (expected := self._settled_s(shape)) > 0.0:
            newest = min(newest, seconds / expected)
        over = newest < OVER * self.level and self.level > 1.0
        return max(1.0, newest) if over else self.level

    def _settled_s(self, shape: StepShape) -> float:
        """What such a step takes at the level of 1; 0 where not all of that is settled."""
        kind = self._kinds.get(shape.kind)
        if not (self._kinds and self.slices.known):
            return 0.0
        slices_s = self.slices.of(shape.reading)
        if not shape.rows:
            return self._line.coefficients[0] + slices_s
        return kind.seconds + slices_s if kind and kind.count >= COUNT_SETTLED else 0.0

    def _observe_copies(self, shape: StepShape, seconds: float) -> None:
        """Decode rows in a step that copied something too: better than nothing, and no more."""
        kind = self._kinds.get(shape.kind)
        if kind is None or self._step - kind.step > STALE_STEPS:
            self._learn(shape, shape.features(), seconds / self._level_seen(shape, seconds))

    def _observe_slices(self, shape: StepShape, seconds: float) -> None:
        """A step that also evaluates prompts. `seconds` without the level."""
        believed = self.decode_s(shape) if shape.rows else self._line.coefficients[0]
        self.rows_overpriced = shape.rows > 0 and seconds < believed
        self.slices.observe(
            shape.reading,
            believed if self._kinds else None,
            seconds,
            beside_rows=shape.rows > 0,
            copied=shape.copied,
        )

    def _learn(self, shape: StepShape, x: Vector, seconds: float) -> None:
        kind = self._kinds.pop(shape.kind, None)
        if kind is None:
            kind = _Kind()
            kind.expected = self._fitted().seconds(x) if self._kinds else seconds
            seconds = min(seconds, kind.expected * BELIEVED_MAX)
        self._kinds[shape.kind] = kind
        kind.add(x, seconds)
        self.surprised = kind.count < KIND_LOOKS and kind.seconds > SURPRISE * kind.expected
        kind.step = self._step
        self._moved = self._moved or kind.moved
        if len(self._kinds) > KINDS_MAX:
            del self._kinds[next(iter(self._kinds))]

    def _fitted(self) -> CostLine:
        """The line through the means as they are."""
        line = self._line
        if self._moved:
            self._moved = False
            kinds = self._kinds
            line.fit([(k.features, k.seconds, k.count) for k in kinds.values()])
            self._offsets = {key: _offset(kind, line) for key, kind in kinds.items()}
        return line


def _low(values: Iterable[float]) -> float:
    """The upper end of their lowest third."""
    ranked = sorted(values)
    return ranked[(len(ranked) - 1) // 3]


def _offset(kind: _Kind, line: CostLine) -> float:
    """How far a kind's steps lie off the line, as far as there are enough of them."""
    kind.fitted = kind.seconds
    return (kind.seconds - line.seconds(kind.features)) * kind.count / (kind.count + 3)

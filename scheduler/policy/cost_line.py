"""A step's seconds as a sum of what grows, fitted through the means of what was measured.

- seconds = base + F(packed tokens) + drafts + draft iterations + context, all coefficients >= 0. F
  is made of straight pieces: it may be flat while the weights are what takes time and steep where
  the products bend, and it is one curve for all: 16 rows of one token and 4 of four cost alike.
- Behind 16 tokens each piece may begin with a stair, for the next tile of a kernel costs as much
  with one row in it as with all. Without, who has a tile's end and the next one's would believe
  that everything between them is cheap.
- Errors count relatively, so that a step of one row is fitted as well as one of 32.
- Where the measurements cannot tell, a slope is like its neighbours', the other coefficients are in
  PRIOR's proportion, and beyond what was seen F goes straight on, as steep as the last piece is
  with its stair.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, chain, pairwise

Vector = list[float]

# Where the pieces of F end and begin, in packed tokens. A kernel's tile is full at its size: that
# many tokens belong to the piece that ends there.
KNOTS = tuple(1 << n for n in range(9))
WIDTHS = (*(b - a for a, b in pairwise(KNOTS)), 1 << 30)
SLOPES = range(1, 1 + len(KNOTS))
FIRST_STAIR = 4  # the piece that begins with the first stair
STAIRS = range(SLOPES.stop, SLOPES.stop + len(KNOTS) - FIRST_STAIR)
BASE, DRAFT, ITERATION, CONTEXT, SIZE = 0, *range(STAIRS.stop, STAIRS.stop + 4)
# Base, F's slopes and stairs, a drafted token, an iteration, 1024 tokens of context: ratios count.
PRIOR = (1.0, *(0.03 for _ in SLOPES), *(0.1 for _ in STAIRS), 0.01, 0.08, 0.005)
PRIOR_SLOPE = PRIOR[1]
LEAST = 0.01  # no step is free, whatever the samples say: of the fastest
COUNT_MAX = 8  # a mean of so many samples has full weight
SHRINK = 0.02  # pull towards PRIOR's proportion, of a coefficient's own weight
STAIR_SHRINK = 0.2  # the same of a stair: a kind first met in a slow moment looks like one
SMOOTH = 0.02  # pull of two neighbouring slopes towards each other
SWEEPS = 10


def piece_of(tokens: int) -> int:
    """Which piece of F `tokens` lie on: from behind KNOTS[piece] on."""
    return max(bisect_left(KNOTS, tokens) - 1, 0)


def features(tokens: int, drafted: int, iterations: int, context_tokens: int) -> Vector:
    """In the order of PRIOR, context in units of 1024 tokens."""
    on = [min(tokens - k, w) if tokens > k else 0 for k, w in zip(KNOTS, WIDTHS, strict=True)]
    stairs = [int(tokens > k) for k in KNOTS[FIRST_STAIR:]]
    return [1.0, *on, *stairs, drafted, iterations, context_tokens / 1024]


class CostLine:
    """The coefficients; in PRIOR's unit until the first fit."""

    __slots__ = ("_fitted", "coefficients")

    def __init__(self) -> None:
        self.coefficients: Vector = list(PRIOR)
        self._fitted = False

    def seconds(self, x: Sequence[float]) -> float:
        """Of a step with these features."""
        return _dot(self.coefficients, x)

    def curve(self) -> Vector:
        """F right behind each of KNOTS: the stair that begins there is in it."""
        pieces = zip([self.coefficients[k] for k in SLOPES], WIDTHS[:-1], strict=False)
        level = accumulate([slope * width for slope, width in pieces], initial=0.0)
        stairs = (0.0,) * FIRST_STAIR, [self.coefficients[k] for k in STAIRS]
        return [a + b for a, b in zip(level, accumulate(chain(*stairs)), strict=True)]

    def fit(self, means: Sequence[tuple[Vector, float, int]]) -> None:
        """To (features, seconds, count) of each kind of step; at least one."""
        gram = [[0.0] * SIZE for _ in range(SIZE)]
        right = [0.0] * SIZE
        for x, seconds, count in means:
            _accumulate(gram, right, [v / seconds for v in x], min(count, COUNT_MAX))
        weight = gram_weight = sum(min(count, COUNT_MAX) for _, _, count in means)
        scale = sum(min(n, COUNT_MAX) * y / _dot(PRIOR, x) for x, y, n in means) / weight
        last = max((k for k in SLOPES if gram[k][k]), default=SLOPES.start)
        unseen = {k for k in (*SLOPES, *STAIRS) if k != last and not gram[k][k]}
        for j, row in enumerate(gram):
            pull = (STAIR_SHRINK if j in STAIRS else SHRINK) * row[j] + 1e-9 * weight / scale**2
            row[j] += pull
            right[j] += pull * scale * PRIOR[j]
        _smooth(gram, last, gram_weight / scale**2)
        start = self.coefficients if self._fitted else [scale * p for p in PRIOR]
        found = _solve(gram, right, start, [j for j in range(SIZE) if j not in unseen])
        # Where the next stairs are nobody knows, but that there are some: they lie in the slope.
        piece = last - SLOPES.start
        stair = found[STAIRS[piece - FIRST_STAIR]] if piece >= FIRST_STAIR else 0.0
        onward = found[last] + stair / WIDTHS[piece]
        for k in unseen:
            found[k] = onward if k in SLOPES else 0.0
        found[BASE] = max(found[BASE], LEAST * min(seconds for _, seconds, _ in means))
        self.coefficients, self._fitted = found, True


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum([x * y for x, y in zip(a, b, strict=True)])


def _accumulate(gram: list[Vector], right: Vector, x: Vector, weight: float) -> None:
    """Add weight * x xT, for a measurement that x makes 1."""
    present = [(i, value) for i, value in enumerate(x) if value]
    for i, xi in present:
        wx, row = weight * xi, gram[i]
        right[i] += wx
        for j, xj in present:
            row[j] += wx * xj


def _smooth(gram: list[Vector], last: int, weight: float) -> None:
    """Neighbouring slopes up to `last` are alike, each in proportion to what its piece may cost."""
    for k in range(SLOPES.start, last):
        width = WIDTHS[min(k, len(WIDTHS) - 2)] / (1.0 + PRIOR_SLOPE * KNOTS[k])
        pull = SMOOTH * weight * width * width
        gram[k][k] += pull
        gram[k + 1][k + 1] += pull
        gram[k][k + 1] -= pull
        gram[k + 1][k] -= pull


def _solve(
    gram: list[Vector], right: Vector, start: Sequence[float], free: Sequence[int]
) -> Vector:
    """argmin over t >= 0 of t' G t / 2 - right' t, by sweeps up and down over the `free` ones."""
    theta = list(start)
    for sweep in range(SWEEPS):
        for j in reversed(free) if sweep % 2 else free:
            row = gram[j]
            rest = _dot(row, theta) - row[j] * theta[j]
            theta[j] = max(0.0, (right[j] - rest) / row[j])
    return theta

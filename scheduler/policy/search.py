"""The depths of a step that give the most tokens a second, by what is believed of both.

- With rate r, drafts are worth what they add to the tokens less r times what they add to the
  seconds; r is found by iteration (Dinkelbach), so the answer is the joint optimum under the cost
  model, depth 0 included.
- Of all drafts the likeliest are taken, whosever they are: chances never increase along a row, so
  any number of the likeliest are whole beginnings of rows. Within one piece of the cost's curve
  every token costs the same, so at most one number there can be the best, or an end of the piece.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from sapwood.scheduler.policy.cost_line import KNOTS, WIDTHS, piece_of
from sapwood.scheduler.policy.step_cost import Prices

GAIN_MIN = 0.03  # a draft less likely to be emitted is never worth it, however cheap it looks
WORTH_MIN = 0.01  # what drafting must be believed to gain, so that noise does not start it
RATE_ITERATIONS = 6

Draft = tuple[float, int, int]  # minus the chance that it is emitted, its depth, its row


@dataclass(frozen=True, slots=True)
class Reach:
    """How far a choice may go: `iterations` of the drafter, `drafted` drafts of all rows."""

    iterations: int
    drafted: int


@dataclass(frozen=True, slots=True)
class _Level:
    """The drafts that so many iterations allow, likeliest first, and sums of their chances.

    least: how many of them it takes until one needs so many iterations.
    """

    iterations: int
    least: int
    drafts: Sequence[Draft]
    chances: Sequence[float]  # negative, ascending
    sums: Sequence[float]  # sums[n] of the first n chances


class Search:
    """One step: its rows, what their drafts are worth, and what they cost."""

    def __init__(
        self,
        gains: Sequence[Sequence[float]],
        pinned: Sequence[int | None],
        prices: Prices,
    ) -> None:
        """gains[n][j]: that draft j + 1 of row n is emitted; of a pinned row all that it drafts."""
        self._gains, self._pinned, self._prices = gains, pinned, prices
        self.rate = 0.0  # tokens a second, of the best

    def tokens(self, depths: Sequence[int]) -> float:
        """That a step with these depths is expected to give."""
        return sum(self.row_tokens(depths))

    def row_tokens(self, depths: Sequence[int]) -> list[float]:
        """The same of each row."""
        return [1.0 + sum(g[:depth]) for g, depth in zip(self._gains, depths, strict=True)]

    def worth(self, depths: Sequence[int]) -> float:
        """The tokens that the best would give in the seconds that these depths take."""
        return self.rate * self._prices.seconds(sum(depths), max(depths))

    def deepest_free(self, depths: Sequence[int]) -> int:
        """The most drafts of a row that is not pinned; 0 where all are."""
        free = (d for d, pinned in zip(depths, self._pinned, strict=True) if pinned is None)
        return max(free, default=0)

    def known(self, depths: Sequence[int]) -> bool:
        """Whether steps with these depths were measured often enough."""
        return self._prices.known(sum(depths), max(depths))

    def best(self, reach: Reach) -> list[int]:
        """A depth for each row; sets `rate`. Pinned rows keep theirs, beyond any reach."""
        begun = [depth or 0 for depth in self._pinned]
        floor, drafted = max(begun), sum(begun)
        levels = list(self._levels(max(reach.iterations, floor), floor, reach.drafted))
        tokens = self.tokens(begun)
        self.rate = tokens / self._prices.seconds(drafted, floor)
        chosen: Sequence[Draft] = ()
        for _ in range(RATE_ITERATIONS):
            most, found = (1e-9 if chosen else WORTH_MIN) * tokens, None
            for level in levels:
                for count in self._counts(level, drafted):
                    seconds = self._prices.seconds(drafted + count, level.iterations)
                    gained = tokens - level.sums[count] - self.rate * seconds
                    if gained > most:
                        most, found = gained, (level, count, seconds)
            if found is None:
                break
            level, count, seconds = found
            chosen = level.drafts[:count]
            self.rate = (tokens - level.sums[count]) / seconds
        for _, depth, row in chosen:
            begun[row] = max(begun[row], depth)
        return begun

    def _levels(self, iterations_max: int, floor: int, drafted_max: int) -> Iterator[_Level]:
        every = sorted(
            (-gain, depth, row)
            for row, gains in enumerate(self._gains)
            if self._pinned[row] is None
            for depth, gain in enumerate(gains[:iterations_max], 1)
            if gain > GAIN_MIN
        )
        deepest = max((depth for _, depth, _ in every), default=floor)
        for iterations in range(max(floor, 1), max(deepest, floor) + 1):
            drafts = [draft for draft in every if draft[1] <= iterations][:drafted_max]
            deep = (n for n, draft in enumerate(drafts, 1) if draft[1] == iterations)
            least = 0 if iterations == floor else next(deep, 0)
            if iterations > floor and not least:
                return  # and none deeper
            chances = [draft[0] for draft in drafts]
            sums = list(accumulate(chances, initial=0.0))
            yield _Level(iterations, least, drafts, chances, sums)

    def _counts(self, level: _Level, drafted: int) -> Iterator[int]:
        """Numbers of drafts that need all of a level's iterations, the best among them."""
        chances, slopes = level.chances, self._prices.slopes
        most, first, begin = len(chances), self._prices.rows + drafted, level.least
        piece = piece_of(first + begin)
        while True:
            yield begin
            end = min(KNOTS[piece] + WIDTHS[piece] - first, most)
            if begin < end:
                yield bisect_left(chances, -self.rate * slopes[piece], begin, end)
                yield end
            if end >= most:
                break
            begin, piece = end + 1, piece + 1
        # All of them may make all rows equally deep, which is a kind of step with its own price.
        if most > level.least:
            yield most - 1

"""How many tokens each row drafts, chosen for all rows of a step together.

- Depths maximise expected committed tokens per second (search), by what is believed of the drafts
  (acceptance) and of the seconds (step_cost). What is believed is tried now and then (exploration).
- Nothing is chosen far from what was seen: a step has at most one iteration more, and twice the
  tokens, of the largest so far. So the first steps of a process go up from plain decoding, and what
  a deep round costs is not found out by one.
- Where no row is free to choose, nothing is reckoned, and little learned.
- What a constraint forces is drafted in any case, and is no news: of such a round only drafts of
  the drafter are learned from, and to the account of trials it gave what was expected of it.
- A step that reads prompts too has the depths that it would have without: what its slices take is
  decided by what its rows take then (core/slicing), and deeper rounds would come out of the slices.
- Deterministic: no randomness, no clock; the core measures a step from its plan to its commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sapwood.scheduler.policy.acceptance import (
    ACCEPTANCE_START,
    MODEL_RATE,
    SEQUENCE_RATE,
    Acceptance,
    gains_of,
)
from sapwood.scheduler.policy.exploration import Exploration
from sapwood.scheduler.policy.search import Reach, Search
from sapwood.scheduler.policy.step_cost import StepCost, StepShape

SELDOM = 4  # of so many plain steps in which nobody chose one is learned from, for slices' sake


class Drafting:
    """What the policy remembers of one sequence."""

    __slots__ = ("acceptance", "expected")

    def __init__(self, depth_max: int) -> None:
        self.acceptance = Acceptance(depth_max, SEQUENCE_RATE)
        self.expected = 1.0  # tokens of its newest round, had none been forced


@dataclass(frozen=True, slots=True)
class Row:
    """One decoding sequence of the step: at most `depth_max` drafts, exactly `pinned` if given.

    forced: of them the first so many are forced, no more than it may have.
    """

    drafting: Drafting
    depth_max: int
    context_tokens: int
    pinned: int | None = None
    forced: int = 0

    @property
    def limit(self) -> int:
        """The most drafts that it may have."""
        return self.depth_max if self.pinned is None else self.pinned


class DepthPolicy:
    """Chooses depths and learns from what became of them."""

    def __init__(self, depth_max: int) -> None:
        """depth_max 0: there is no drafter."""
        self.depth_max = depth_max
        self.parked_rows = 0
        self._model = Acceptance(depth_max, MODEL_RATE)
        self.cost = StepCost()  # of all steps, with a drafter and without
        self._exploration = Exploration()
        self._chosen: list[int] = []  # for the newest step, if any row was free
        self._emitted = 0.0  # by the rows of the newest step
        self._chose = False  # whether any row of the newest step was free
        self._steps = 0

    def drafting(self) -> Drafting:
        """For a new sequence, which keeps it: nothing is known of its drafts yet."""
        return Drafting(self.depth_max)

    def choose(self, rows: Sequence[Row], *, reads: bool = False) -> list[int]:
        """One depth per row. reads: the step has slices of prompts too."""
        self.parked_rows = 0
        self._exploration.settle(self._emitted)
        self._emitted = 0.0
        depths = self._drafter_depths(rows, reads)
        return [max(depth, row.forced) for row, depth in zip(rows, depths, strict=True)]

    def _drafter_depths(self, rows: Sequence[Row], reads: bool) -> list[int]:
        """As if nothing were forced."""
        free = any(row.limit and row.pinned is None for row in rows)
        self._chose = free
        if not free:
            self._chosen = []
            return [row.limit for row in rows]
        search, reach = self._search(rows)
        best = search.best(reach)
        self.parked_rows = sum(
            not depth and row.pinned is None and row.depth_max > 0
            for row, depth in zip(rows, best, strict=True)
        )
        if self.cost.surprised and len(self._chosen) == len(rows):
            self._chosen = [_near(d, row) for d, row in zip(self._chosen, rows, strict=True)]
            self._exploration.repeat(search, best, self._chosen)
        else:
            plain = not reads and all(row.pinned is None for row in rows)
            limits = [row.limit for row in rows]
            self._chosen = self._exploration.tried(search, best, limits, reach, plain)
        for row, tokens in zip(rows, search.row_tokens(self._chosen), strict=True):
            row.drafting.expected = tokens
        return self._chosen

    def observe_row(self, drafting: Drafting, drafted: int, accepted: int, forced: int = 0) -> None:
        """A round verified `drafted` drafts and accepted the first `accepted`.

        forced: of the drafts those that no drafter drew.
        """
        self._emitted += drafting.expected if forced else accepted + 1
        before = ACCEPTANCE_START
        for position in range(forced, min(drafted, accepted + 1)):
            hit = position < accepted
            if self._model.counts[position]:
                before = self._model.values[position]
            drafting.acceptance.observe(position, hit, before)
            self._model.observe(position, hit, before)

    def observe_step(self, shape: StepShape, seconds: float) -> None:
        """`seconds` as in StepCost.observe."""
        self._steps += 1
        if self._chose or shape.reading.tokens or self._steps % SELDOM == 0:
            self.cost.observe(shape, seconds)

    def _search(self, rows: Sequence[Row]) -> tuple[Search, Reach]:
        """This step's, and how far it may look."""
        cost, count = self.cost, len(rows)
        prices = cost.prices(count, sum(row.context_tokens for row in rows))
        gains = [gains_of(row.drafting.acceptance, self._model, row.limit) for row in rows]
        drafted = max(2 * cost.tokens_seen - count, 1)
        reach = Reach(cost.iterations_seen + 1, drafted)
        return Search(gains, [row.pinned for row in rows], prices), reach


def _near(depth: int, row: Row) -> int:
    return min(depth, row.limit) if row.pinned is None else row.pinned

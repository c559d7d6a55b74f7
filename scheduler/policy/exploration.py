"""Steps spent on learning: when, and on what.

- What is not tried is not known. One draft more than is chosen, also from depth 0: whether it is
  accepted by now, and what it costs. One more for those who have fewer than others, no draft, or
  one less: what that costs.
- A step on trial may lose tokens, and what they may lose together is bounded: credit grows by
  SHARE of a step with every step, and a trial waits until it covers the loss that is believed. What
  it is charged is what it lost in truth, so a draft that is accepted against belief pays for the
  next try at once.
- Trials back off by doubling while they change nothing, once the kind of step is known.
- Rows try together, because an iteration is paid once for all; where that is dear, some of them do,
  others the next time.
"""

from __future__ import annotations

from collections.abc import Sequence

from sapwood.scheduler.policy.search import Reach, Search

PROBE_STEPS_MIN = 4
PROBE_STEPS_MAX = 32
# In steps: what is lost is what such a step would have given.
SHARE = 0.01
CREDIT_START = 3.0
CREDIT_MAX = 5.0
LOSS_MAX = 0.6  # of a trial of all rows; where it is more, fewer try

DEEPER, LEVELLED, UNDRAFTED, SHALLOWER = range(4)
TRIAL_TURNS = (DEEPER, UNDRAFTED, LEVELLED, SHALLOWER)


class Exploration:
    """Puts trials among the steps, and keeps their account."""

    def __init__(self) -> None:
        self._credit = CREDIT_START
        self._since = 0  # steps since the last trial
        self._wait = PROBE_STEPS_MIN
        self._turn = 0
        self._deepest = -1  # of what was chosen last
        self._first = 0  # the row that tries first where not all do
        self._worth: tuple[float, float] | None = None  # of a trial under way, and of a usual step

    def settle(self, emitted: float) -> None:
        """The last step emitted so many tokens."""
        if self._worth is None:
            return
        worth, usual = self._worth
        self._worth = None
        self._credit = min(self._credit + (emitted - worth) / usual, CREDIT_MAX)
        # Where no draft was accepted it only looks cheap.
        if emitted > max(worth, usual):
            self._wait = 1

    def repeat(self, search: Search, best: list[int], depths: list[int]) -> None:
        """These depths are tried once more: whatever the account says, for it is soon over."""
        self._worth = search.worth(depths), search.tokens(best)

    def tried(
        self, search: Search, best: list[int], limits: Sequence[int], reach: Reach, plain: bool
    ) -> list[int]:
        """`best`, or what is tried instead. limits: a row's most drafts; a pinned row's own depth.

        plain: whether a step with fewer drafts would tell what it costs.
        """
        self._credit = min(self._credit + SHARE, CREDIT_MAX)
        self._since += 1
        deepest = search.deepest_free(best)
        if deepest > self._deepest:
            self._wait = max(self._wait // 2, PROBE_STEPS_MIN)
        self._deepest = deepest
        if self._since < self._wait:
            return best
        turn = TRIAL_TURNS[self._turn % len(TRIAL_TURNS)] if deepest else DEEPER
        if turn in (DEEPER, LEVELLED):
            most = deepest if turn == LEVELLED and min(best) < deepest else reach.iterations
            depths = self._more(search, best, limits, most)
        else:
            most = 0 if turn == UNDRAFTED else deepest - 1
            depths = [min(depth, most) for depth in best] if plain else best
        if depths == best:
            self._turn += 1
            return best
        usual, worth = search.tokens(best), search.worth(depths)
        if self._credit < min((worth - search.tokens(depths)) / usual, CREDIT_MAX):
            return best
        self._turn += 1
        self._since = 0
        known = search.known(depths)
        self._wait = min(2 * self._wait if known else self._wait + 2, PROBE_STEPS_MAX)
        self._worth = worth, usual
        return depths

    def _more(self, search: Search, best: list[int], limits: Sequence[int], most: int) -> list[int]:
        """One more for every row that may, or for as many as are worth it."""
        may = [
            row
            for row, (depth, limit) in enumerate(zip(best, limits, strict=True))
            if depth < min(limit, most)
        ]
        depths = _deeper(best, may)
        lost = (search.worth(depths) - search.tokens(depths)) / search.tokens(best)
        if lost <= LOSS_MAX or len(may) < 2:
            return depths
        some = max(1, int(len(may) * LOSS_MAX / lost))
        self._first += some
        return _deeper(best, [may[(self._first + n) % len(may)] for n in range(some)])


def _deeper(depths: list[int], rows: Sequence[int]) -> list[int]:
    found = list(depths)
    for row in rows:
        found[row] += 1
    return found

"""Who goes first and how much of a step each gets: pure functions of plain numbers.

- Decode rows are in every step. A prefill fills what they leave of prefill_tokens_max, and a
  quarter of it always.
- What somebody leaves of a fair share is the others' (max_min): nothing is kept for nobody.
- Among prefills of one owner the shortest rest goes first, so that a short prompt does not wait for
  a long one; the one that went without a slice the longest has a share before all others, so that
  nobody waits more steps than there are prefills.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

# Below this a slice costs more than it brings, unless it ends its prompt. A taste, not a bound.
SLICE_TOKENS_MIN = 16
RETRY_S_MIN = 1.0


def max_min(demands: Sequence[float], weights: Sequence[float], capacity: float) -> list[float]:
    """What each gets of `capacity`: what it asks for, or by weight as much as all who get less.

    Weights are above 0.
    """
    shares = [0.0] * len(demands)
    left, weight = capacity, sum(weights)
    for i in sorted(range(len(demands)), key=lambda i: demands[i] / weights[i]):
        shares[i] = min(demands[i], left * weights[i] / max(weight, weights[i]))
        left -= shares[i]
        weight -= weights[i]
    return shares


def prefill_budget(decode_tokens: int, prefill_tokens_max: int, spare: bool = True) -> int:
    """Prompt tokens that a step with `decode_tokens` packed decode tokens may evaluate.

    Not spare: others are behind who read nothing, so that prompts have what is theirs and no more.
    """
    reserved = -(-prefill_tokens_max // 4)
    return max(prefill_tokens_max - decode_tokens, reserved) if spare else reserved


class _Slices:
    """A step's slices in the making."""

    def __init__(self, rests: Sequence[int], budget: int, slices_max: int) -> None:
        self.shares = [0] * len(rests)
        self._rests, self._left, self._slices = rests, budget, slices_max

    def give(self, i: int, tokens_max: int, slice_min: int = SLICE_TOKENS_MIN) -> int:
        """As many tokens more for prompt `i` as there are; returns how many."""
        room = min(self._left, tokens_max)
        if not self.shares[i]:
            if not self._slices or room < min(self._rests[i], slice_min):
                return 0
            self._slices -= 1
        more = max(0, min(self._rests[i] - self.shares[i], room))
        self.shares[i] += more
        self._left -= more
        return more


def prefill_shares(
    rests: Sequence[int],
    served_steps: Sequence[int],
    budget: int,
    slices_max: int,
    owners: Sequence[str] = (),
    parts: Mapping[str, int] | None = None,
) -> list[int]:
    """How many tokens of each rest this step evaluates; at most `slices_max` of them are not 0.

    `rests` are what each prompt has left (>= 1), in order of admission, `served_steps` the steps in
    which each had its last slice. `parts`: what each of the `owners` has of the budget, who is
    furthest behind first; what one leaves of it is anybody's. Without, all are one owner's.
    """
    slices = _Slices(rests, budget, slices_max)
    if not rests:
        return slices.shares
    starved = min(range(len(rests)), key=lambda i: served_steps[i])
    first = slices.give(starved, max(1, budget // slices_max), slice_min=1)
    ranked = sorted(range(len(rests)), key=lambda i: rests[i])
    if parts:
        left = Counter(parts)
        left[owners[starved]] -= first
        for i in _in_turn(ranked, owners, parts):
            left[owners[i]] -= slices.give(i, left[owners[i]])
    for i in ranked:
        slices.give(i, budget)
    return slices.shares


def _in_turn(ranked: Sequence[int], owners: Sequence[str], parts: Mapping[str, int]) -> list[int]:
    """Each owner's first, then each one's second: there are only so many slices."""
    places = {owner: place for place, owner in enumerate(parts)}
    seen: Counter[str] = Counter()
    turns = []
    for i in ranked:
        owner = owners[i]
        turns.append((seen[owner], places[owner], i))
        seen[owner] += 1
    return [i for *_, i in sorted(turns)]


def retry_after_s(queued: int, slots: int, duration_s: float, longest_s: float) -> float:
    """When a place in the queue may be free, if requests go on taking `duration_s` each."""
    return min(max(RETRY_S_MIN, duration_s * (queued + 1) / slots), longest_s)

"""Which prompts have a slice in a step, and how long each is: pure functions of plain values.

- Beside decode rows a step's slices have so many seconds, by what they were learned to cost
  (SliceCost): a part of the step's time, which the caller decides. Without any they have the step.
  Tokens have a bound of their own, and the shortest that a step may do is a bound the other way.
- Among prompts of one owner the shortest rest goes first, so that a short prompt does not wait for
  a long one; the one that went without a slice the longest has a share before all others, so that
  nobody waits more steps than there are prompts.
- What somebody leaves of a fair share is the others': nothing is kept for nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sapwood.scheduler.policy.slice_cost import SliceCost

# Below this a slice costs more than it brings, unless it ends its prompt. A taste, not a bound.
SLICE_TOKENS_MIN = 16


class Unread(NamedTuple):
    """What is left of one: [start, start + rest), rest >= 1; served_step had its last slice."""

    start: int
    rest: int
    served_step: int
    owner: str = ""


class SliceRoom(NamedTuple):
    """What all slices of a step may take. tokens_least: whatever they cost."""

    seconds: float
    tokens: int
    slices: int
    tokens_least: int = 1


def prefill_budget(decode_tokens: int, prefill_tokens_max: int) -> int:
    """Unread tokens that a step with `decode_tokens` packed decode tokens may evaluate at most."""
    return max(prefill_tokens_max - decode_tokens, -(-prefill_tokens_max // 4))


def least_tokens(prefill_tokens_max: int) -> int:
    """Unread tokens that a step evaluates whatever they cost, if so many are left."""
    return -(-prefill_tokens_max // 128)


class _Deal:
    """A step's slices in the making."""

    def __init__(self, prompts: Sequence[Unread], room: SliceRoom, cost: SliceCost) -> None:
        self.tokens = [0] * len(prompts)
        self._prompts, self._cost = prompts, cost
        self._spent = [0.0] * len(prompts)
        self._seconds, self._tokens, self._slices = room.seconds, room.tokens, room.slices

    def give(self, i: int, seconds_max: float) -> float:
        """As many tokens more for prompt `i` as there is time for; returns the time they take."""
        prompt, had = self._prompts[i], self.tokens[i]
        seconds = self._spent[i] + min(self._seconds, seconds_max)
        fits = min(prompt.rest, self._cost.tokens(prompt.start, seconds)) - had
        more = min(fits, self._tokens)
        begins = not had
        if more <= 0 or (begins and not self._slices):
            return 0.0
        if begins and more < min(prompt.rest, SLICE_TOKENS_MIN):
            return 0.0
        return self.grow(i, more)

    def grow(self, i: int, more: int) -> float:
        """So many tokens more for prompt `i`."""
        self._slices -= not self.tokens[i]
        self.tokens[i] += more
        self._tokens -= more
        spent = self._cost.seconds(self._prompts[i].start, self.tokens[i])
        taken, self._spent[i] = spent - self._spent[i], spent
        self._seconds -= taken
        return taken


def deal(
    prompts: Sequence[Unread],
    room: SliceRoom,
    cost: SliceCost,
    parts: Mapping[str, float] | None = None,
) -> list[int]:
    """How many tokens of each prompt a step evaluates, at most room.slices of them not 0.

    `prompts` in order of admission. `parts`: what seconds each owner has of the room, who is
    furthest behind first; what one leaves of it is anybody's. Without, all are one owner's.
    """
    made = _Deal(prompts, room, cost)
    if not prompts:
        return made.tokens
    starved = min(range(len(prompts)), key=lambda i: prompts[i].served_step)
    first = made.grow(starved, _first_tokens(prompts[starved], room, cost))
    ranked = sorted(range(len(prompts)), key=lambda i: prompts[i].rest)
    if parts:
        left = dict(parts)
        left[prompts[starved].owner] -= first
        for i in _in_turn(ranked, prompts, parts):
            left[prompts[i].owner] -= made.give(i, left[prompts[i].owner])
    for i in ranked:
        made.give(i, room.seconds)
    return made.tokens


def _first_tokens(prompt: Unread, room: SliceRoom, cost: SliceCost) -> int:
    """Of whoever went without a slice the longest: a slice's part of the room, were all taken."""
    part = max(SLICE_TOKENS_MIN, cost.tokens(prompt.start, room.seconds / room.slices))
    part = min(part, cost.tokens(prompt.start, room.seconds), room.tokens // room.slices)
    return min(max(part, room.tokens_least), prompt.rest, room.tokens)


def _in_turn(
    ranked: Sequence[int], prompts: Sequence[Unread], parts: Mapping[str, float]
) -> list[int]:
    """Each owner's first, then each one's second: there are only so many slices."""
    places = {owner: place for place, owner in enumerate(parts)}
    seen: Counter[str] = Counter()
    turns = []
    for i in ranked:
        owner = prompts[i].owner
        turns.append((seen[owner], places[owner], i))
        seen[owner] += 1
    return [i for *_, i in sorted(turns)]

"""How long prompts read in a step, and whose: a part of its time (ADR 021).

- Decode rows come first, with the depths that they would have were nothing read. What a step may
  take beside them is told in time: `itl_target` times what it takes where nothing is read, so the
  pace of those who decode is slowed by that and no more, however long a prompt is and wherever in
  it it stands.
- What it takes where nothing is read are its rows, and copies as often as they come: among short
  replies somebody comes or goes in most steps. A step that copies has the shorter slices for it.
- Never below RESERVED of a step's time, nor below least_tokens, so that prompts advance.
- Beyond the target those who decode are slowed by prompts of their own principal, where more are
  read than that allows for: then everybody of it, reading or decoding, has an equal part. And by
  those of others who contend with them and have had less than their share of the device.
- Where nobody decodes a step's slices have prefill_tokens_max.
"""

from __future__ import annotations

from collections import Counter, abc

from sapwood.scheduler.core.fairness import Fairness
from sapwood.scheduler.core.roster import Roster
from sapwood.scheduler.core.sequence import Sequence, SequenceState
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.plan import DecodeRow
from sapwood.scheduler.policy.depth import DepthPolicy
from sapwood.scheduler.policy.slices import (
    SliceRoom,
    Unread,
    deal,
    least_tokens,
    prefill_budget,
)
from sapwood.scheduler.policy.step_cost import StepShape

RESERVED = 0.25  # of the time of a step with decode rows
UNBOUNDED_S = 1e9
READERS_GROWTH = 2  # times the most tokens that were seen beside decode rows


def paced_share(itl_target: float) -> float:
    """Of a step's time what prompts have, so that it takes `itl_target` times what rows take."""
    return max(RESERVED, 1.0 - 1.0 / itl_target)


def shape_of(decodes: abc.Sequence[DecodeRow]) -> StepShape:
    """What decode rows cost. Forced drafts are tokens like the rows' own: no drafter drew them."""
    # Lists, not generators: this is reckoned twice in each step, with a call for each row.
    drafted = [row.iterations for row in decodes]
    tokens = len(decodes) + sum([row.depth for row in decodes])
    return StepShape(
        rows=tokens - sum(drafted),
        drafted=sum(drafted),
        iterations=max(drafted, default=0),
        context_tokens=sum([row.start for row in decodes]),
    )


class Slicing:
    """Asked once in a plan, behind the choice of depths."""

    def __init__(
        self, limits: Limits, roster: Roster, depth: DepthPolicy, fairness: Fairness
    ) -> None:
        self._limits, self._roster = limits, roster
        self._cost, self._fairness = depth.cost, fairness

    def shares(
        self,
        prefilling: abc.Sequence[Sequence],
        decoding: abc.Sequence[Sequence],
        decodes: abc.Sequence[DecodeRow],
        copies: bool,
    ) -> list[tuple[Sequence, int]]:
        """Who has a slice in the step of these rows, and of how many tokens.

        copies: the step copies prefixes too.
        """
        if not prefilling:
            return []
        room = self._room(prefilling, decoding, decodes, copies)
        prompts = [
            Unread(s.evaluated, self._readable(s), s.served_step, s.request.principal)
            for s in prefilling
        ]
        shares = deal(prompts, room, self._cost.slices, self._parts(prompts, room))
        return [(s, share) for s, share in zip(prefilling, shares, strict=True) if share]

    def reading_s(self, start: int, tokens: int) -> float:
        """Seconds that [start, start + tokens) of a prompt takes beside the rows that decode now.

        Had it all that prompts have from now on; 0 where nothing was learned yet.
        """
        if not self._cost.slices.known:
            return 0.0
        seconds = self._cost.slices.seconds(start, tokens) * self._cost.level
        if self._roster.in_state(SequenceState.DECODE):
            return seconds / paced_share(self._limits.itl_target)
        steps = -(-tokens // self._limits.prefill_tokens_max)
        return seconds + steps * self._cost.base_s

    def _room(
        self,
        prefilling: abc.Sequence[Sequence],
        decoding: abc.Sequence[Sequence],
        decodes: abc.Sequence[DecodeRow],
        copies: bool,
    ) -> SliceRoom:
        limits, shape = self._limits, shape_of(decodes)
        tokens = prefill_budget(shape.tokens, limits.prefill_tokens_max)
        if not decodes:
            return SliceRoom(UNBOUNDED_S, tokens, limits.prefill_slices_max)
        rows_s = self._cost.decode_s(shape)
        share = self._share(prefilling, decoding)
        least = least_tokens(limits.prefill_tokens_max)
        tokens = min(tokens, READERS_GROWTH * self._cost.slices.tokens_seen)
        copies_s = self._cost.slices.copies_s
        pace_s = rows_s + self._cost.copying * copies_s
        least_s = rows_s * RESERVED / (1.0 - RESERVED)
        room_s = max(least_s, pace_s / (1.0 - share) - rows_s - copies * copies_s)
        # A step that copies would show more than what rows take.
        wants_look = not copies and self._cost.wants_look(shape)
        if wants_look and self._looks(prefilling, room_s):
            return SliceRoom(0.0, 1, 1)
        return SliceRoom(room_s, max(tokens, least), limits.prefill_slices_max, least)

    def _readable(self, sequence: Sequence) -> int:
        """How much of its prefix may be one slice: whose scores are due, some; else all."""
        if not sequence.scores_left:
            return sequence.unread
        again = sequence.processed - sequence.evaluated  # told of before it was parked
        return min(sequence.unread, again or self._limits.scored_tokens_max)

    def _looks(self, prefilling: abc.Sequence[Sequence], room_s: float) -> bool:
        """Not where this step would end all prompts, unless what says so was denied."""
        rest_s = sum(self._cost.slices.seconds(s.evaluated, s.unread) for s in prefilling)
        return rest_s > room_s or self._cost.rows_overpriced

    def _share(self, prefilling: abc.Sequence[Sequence], decoding: abc.Sequence[Sequence]) -> float:
        """Of the step's time what prompts have."""
        reading = Counter(s.request.principal for s in prefilling)
        rows = Counter(s.request.principal for s in decoding)
        more = {name: max(0, reading[name] - 1) for name in rows}
        own = min(more[name] / (more[name] + count) for name, count in rows.items())
        owed = self._fairness.owed(set(reading))
        paced = paced_share(self._limits.itl_target)
        return max(own, paced if owed is None else owed or RESERVED)

    def _parts(self, prompts: abc.Sequence[Unread], room: SliceRoom) -> dict[str, float]:
        """Of the room's seconds what is whose; {} where one reads alone."""
        wanted, tokens = Counter[str](), 0
        if all(prompt.owner == prompts[0].owner for prompt in prompts):
            return {}
        for prompt in prompts:
            most = min(prompt.rest, room.tokens)
            wanted[prompt.owner] += self._cost.slices.seconds(prompt.start, most)  # type: ignore[assignment]
            tokens += most
        seconds = min(room.seconds, sum(wanted.values()) * room.tokens / tokens)
        return self._fairness.parts(wanted, seconds, self._cost.level)

"""For whom a row is given up, where slots or memory are short: one in a plan at most (L4).

- Who is given up, and whether anybody has to be, is Fairness' to say; here is who wants it, and
  that it is not for nothing: where memory refuses who wanted the last one, nobody is given up for
  yield_steps_min steps.
- Only between plans in which a slot falls free: what falls free goes to them first.
"""

from __future__ import annotations

from sapwood.scheduler.core.fairness import Fairness
from sapwood.scheduler.core.roster import Roster
from sapwood.scheduler.core.sequence import Sequence, SequenceState
from sapwood.scheduler.limits import Limits

_Claim = tuple[Sequence, Sequence]  # who wants a row, and whose it is


class Claims:
    """Asked once in each plan in which nobody leaves, before anybody is admitted."""

    def __init__(self, limits: Limits, roster: Roster, fairness: Fairness) -> None:
        self._limits, self._roster, self._fairness = limits, roster, fairness
        self._claimant: Sequence | None = None  # of the last claim
        self._from_step = 0

    def victim(self, step: int) -> Sequence | None:
        """Who is to be parked for somebody else."""
        claimant, self._claimant = self._claimant, None
        if claimant is not None and claimant.state in (SequenceState.QUEUED, SequenceState.PARKED):
            self._from_step = step + self._limits.yield_steps_min
        if step < self._from_step:
            return None
        claim = self._of_room(step) if self._roster.free_slots else self._of_slot(step)
        if claim is None:
            return None
        self._claimant, victim = claim
        return victim

    def _of_slot(self, step: int) -> _Claim | None:
        """All slots are taken."""
        for line in self._fairness.order():
            victim = self._fairness.victim(line, step)
            claimant = None if victim is None else next(self._roster.candidates([line]), None)
            if victim is not None and claimant is not None:
                return claimant, victim
        return None

    def _of_room(self, step: int) -> _Claim | None:
        """There are slots, and the last plan found no room for some who wait."""
        asked: set[str] = set()
        for claimant in self._roster.waiting.refused:
            name = claimant.request.principal
            victim = None if name in asked else self._fairness.victim_for_room(name, step)
            if victim is not None:
                return claimant, victim
            asked.add(name)
        return None

"""Who is let in, who has waited too long, and what is said to those who get no whole reply.

- Who is let in could be served were it alone (L5), and has a place in the queue.
- A deadline is kept to the step. A request that shall hear early (deadline_policy EARLY) ends as
  soon as, by what things have cost, its first token cannot come in time: at the door by the wait
  for a slot and the reading of its prompt, later by the reading alone. Where nothing was learned
  yet all is possible.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from sapwood.scheduler.core.fairness import Fairness
from sapwood.scheduler.core.memory import DeviceMemory
from sapwood.scheduler.core.meters import Meters
from sapwood.scheduler.core.roster import Roster
from sapwood.scheduler.core.sequence import Sequence, SequenceState
from sapwood.scheduler.core.slicing import Slicing
from sapwood.scheduler.events import Request
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.outcomes import Outcome
from sapwood.scheduler.policy.shares import retry_after_s
from sapwood.scheduler.reasons import Reason


class Verdict(NamedTuple):
    """What a request counts as that gets no whole reply, and what its client is told."""

    outcome: Outcome
    reason: Reason
    message: str
    retry_after_s: float | None = None


SHUTTING_DOWN = Verdict(Outcome.REJECTED, Reason.DRAINING, "the daemon is shutting down")
_TOO_LARGE = Verdict(
    Outcome.REJECTED,
    Reason.OUT_OF_MEMORY,
    "prompt and max_tokens need more memory than there is",
)
_EXPIRED = Verdict(Outcome.DEADLINE, Reason.DEADLINE_EXCEEDED, "the request's time is over")
_TOO_LATE = Verdict(
    Outcome.DEADLINE, Reason.DEADLINE_EXCEEDED, "the first token cannot come before the deadline"
)


class Door:
    """Judges requests; who is let in, and ended, is the core's to do."""

    def __init__(
        self,
        limits: Limits,
        roster: Roster,
        memory: DeviceMemory,
        meters: Meters,
        fairness: Fairness,
        slicing: Slicing,
    ) -> None:
        self._limits, self._roster, self._slicing = limits, roster, slicing
        self._memory, self._meters, self._fairness = memory, meters, fairness

    def refusal(self, sequence: Sequence, now: float) -> Verdict | None:
        """Why it is not let in. None also where it is let in in somebody's place."""
        request, waiting = sequence.request, self._roster.waiting
        if not self._memory.servable(request):
            return _TOO_LARGE
        if request.early and self._begins_too_late(sequence, now):
            return _TOO_LATE
        if waiting.full and waiting.displaced_by(request) is None:
            return self._queue_full(f"{len(waiting)} requests are waiting already")
        if request.pin and (why := self._memory.pins.refusal(request, self._roster.accepted)):
            return Verdict(Outcome.REJECTED, *why)
        return None

    def displaced(self, request: Request) -> Iterator[tuple[Sequence, Verdict]]:
        """Who has to leave a full queue for the request, which is let in."""
        waiting = self._roster.waiting
        last = waiting.displaced_by(request) if waiting.full else None
        if last is not None:
            yield last, self._queue_full("others, who have fewer, came into a full queue")

    def expired(self, now: float) -> Iterator[tuple[Sequence, Verdict]]:
        """Whose time is over: each is to be ended before the next is asked for."""
        waiting = self._roster.waiting
        everybody = [*waiting, *self._roster.live.values()]
        for sequence in everybody:
            if now >= sequence.expires_at:
                yield sequence, _EXPIRED
            elif sequence.request.early and self._reads_too_late(sequence, now):
                yield sequence, _TOO_LATE
        for sequence in waiting.queued:
            if now >= sequence.queue_expires_at:
                message = f"no place was free for {self._limits.queue_s_max:g} s"
                yield sequence, self._queue_full(message)

    def _begins_too_late(self, sequence: Sequence, now: float) -> bool:
        turns = self._fairness.turns_before(sequence.request)
        return self._reads_too_late(sequence, now + turns * self._held_s)

    def _reads_too_late(self, sequence: Sequence, now: float) -> bool:
        """Whether what is left of its prompt takes too long, were it to have every step."""
        if sequence.state is SequenceState.QUEUED:
            start = self._memory.match(sequence).tokens
        elif sequence.state is SequenceState.PREFILL and not sequence.emitted:
            start = sequence.evaluated
        else:
            return False
        reading_s = self._slicing.reading_s(start, len(sequence.prefix) - start)
        return now + reading_s >= sequence.expires_at

    @property
    def _held_s(self) -> float:
        """How long requests have had their slots."""
        meters = self._meters
        return meters.request_prefill.view().mean + meters.request_decode.view().mean

    @property
    def retry_s(self) -> float:
        """When to ask again. By what requests take with a slot: their wait is reckoned here."""
        waiting, limits = len(self._roster.waiting), self._limits
        return retry_after_s(waiting, limits.slots_max, self._held_s, limits.queue_s_max)

    def _queue_full(self, message: str) -> Verdict:
        return Verdict(Outcome.REJECTED, Reason.QUEUE_FULL, message, self.retry_s)

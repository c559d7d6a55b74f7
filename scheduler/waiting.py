"""Sessions that have no slot yet, in the order they came, and who of them may have one next.

- First come, first served, except that a longer cached prefix goes first, and that one which does
  not fit memory lets others by: nobody is overtaken more than overtaken_max times. Whoever was
  overtaken that often ends the line: nobody behind it is looked at.
- Of two cold requests with one prefix the second waits, without a slot, while a session in prefill
  is about to store share_tokens_min or more tokens that the tree does not have for it yet. When
  that session ends in any way, the next one in line takes over.
- A step costs O(1) per waiting session; prompts are compared once per pair, as whole slices, and
  only for the first admission_candidates_max that could go.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cache.radix import common
from scheduler.limits import Limits
from scheduler.memory import Memory
from scheduler.session import Session, State


class Waiting:
    """The queue of QUEUED sessions."""

    def __init__(self, limits: Limits, memory: Memory) -> None:
        self._limits = limits
        self._memory = memory
        self._sessions: dict[int, Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    @property
    def full(self) -> bool:
        return len(self._sessions) >= self._limits.queued_max

    def get(self, id: int) -> Session | None:
        return self._sessions.get(id)

    def add(self, session: Session) -> None:
        self._sessions[session.id] = session

    def remove(self, session: Session) -> None:
        """The session ended while it waited."""
        del self._sessions[session.id]

    def take(self, session: Session) -> None:
        """The session gets a slot: it overtakes all that came before it."""
        for other in self._sessions.values():
            if other is session:
                break
            other.overtaken += 1
        self.remove(session)
        session.awaited = None

    def candidates(self, prefilling: Sequence[Session]) -> list[Session]:
        """Who may go next, the first choice first; memory may still refuse each of them."""
        found: list[Session] = []
        looked = 0
        for session in self._sessions.values():
            if not _still_awaits(session):
                looked += 1
                if self._memory.may_fit(session) and not self._awaits(session, prefilling):
                    found.append(session)
            if looked == self._limits.admission_candidates_max:
                break
            if session.overtaken >= self._limits.overtaken_max:
                break
        found.sort(key=lambda session: -self._memory.match(session).tokens)  # stable: then FIFO
        return found

    def _awaits(self, session: Session, prefilling: Sequence[Session]) -> bool:
        """Remember and tell whether somebody in prefill will soon store a prefix of `session`."""
        session.awaited = None
        if session.request.cache_bypass:
            return False
        cached = self._memory.match(session).tokens
        shared = {other.id: _shared(session, other) for other in prefilling if other.storing}
        session.common = shared  # of those that are still there, so it stays small
        for other in prefilling:
            prefix = shared.get(other.id, 0)
            if prefix > other.stored and prefix - cached >= self._limits.share_tokens_min:
                session.awaited = other, prefix
                return True
        return False


def _still_awaits(session: Session) -> bool:
    if session.awaited is None:
        return False
    other, prefix = session.awaited
    return other.state is State.PREFILL and other.storing and other.stored < prefix


def _shared(session: Session, other: Session) -> int:
    """Tokens that `session` could restore of what `other` will have stored after its prefill."""
    known = session.common.get(other.id)
    if known is not None:
        return known
    if session.request.root != other.request.root:
        return 0
    ours, theirs = session.packed_prompt, other.packed_prompt
    return common(theirs, 0, ours, 0, len(ours) - 1)

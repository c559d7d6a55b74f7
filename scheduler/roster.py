"""Who is where: each session is in exactly one place, as its state says.

- QUEUED: in `waiting`. PREFILL and DECODE: in `live`, in order of admission, with a slot.
- DONE with a slot: in `leaving`, until the next plan. DONE with only a lease: in `storing`, until
  that plan's commit. DONE otherwise: forgotten.
- Slots are rows of the device's pools, so the lowest free one is taken first.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush

from scheduler.session import Session, State
from scheduler.waiting import Waiting


class Roster:
    """The sessions of the core. Every change of state passes here, but PREFILL to DECODE."""

    def __init__(self, slots_max: int, waiting: Waiting) -> None:
        self.waiting = waiting
        self.live: dict[int, Session] = {}
        self.leaving: list[Session] = []
        self.storing: list[Session] = []
        self._slots_max = slots_max
        self._free_slots = list(range(slots_max))  # a heap

    def __bool__(self) -> bool:
        """Whether anybody still needs a step."""
        return bool(self.live or len(self.waiting) or self.leaving or self.storing)

    @property
    def has_free_slot(self) -> bool:
        return bool(self._free_slots)

    def find(self, id: int) -> Session | None:
        """None for a session that is DONE or never was."""
        return self.live.get(id) or self.waiting.get(id)

    def in_state(self, state: State) -> tuple[Session, ...]:
        return tuple(session for session in self.live.values() if session.state is state)

    def admit(self, session: Session, now: float, step: int) -> None:
        """The session has its lease and its memory; it gets a slot."""
        self.waiting.take(session)
        session.move(State.PREFILL, now, "admitted")
        session.slot = heappop(self._free_slots)
        session.admitted_at = now
        session.served_step = step
        session.storing = session.lease is not None
        session.cached = session.processed = session.stored
        self.live[session.id] = session

    def end(self, session: Session, now: float, why: str) -> None:
        """The one edge to DONE, from any state."""
        if session.state is State.QUEUED:
            self.waiting.remove(session)
        else:
            del self.live[session.id]
            self.leaving.append(session)
        session.move(State.DONE, now, why)

    def leave(self, captured: Sequence[Session]) -> None:
        """A plan releases the slots of all that were leaving and captures some of them."""
        for session in self.leaving:
            heappush(self._free_slots, session.slot)
        self.leaving.clear()
        self.storing.extend(captured)

    def stories(self) -> list[str]:
        """What everybody here went through, without a word of their text."""
        return [
            s.tell() for s in (*self.waiting, *self.live.values(), *self.leaving, *self.storing)
        ]

    def check(self) -> None:
        """L1, and each session's range map."""
        for session in self.waiting:
            assert session.state is State.QUEUED and session.slot < 0, session.tell()
        for session in self.live.values():
            assert session.state in (State.PREFILL, State.DECODE), session.tell()
            assert (session.state is State.DECODE) == bool(session.emitted), session.tell()
            assert session.stored <= session.evaluated, session.tell()
        for session in self.leaving + self.storing:
            assert session.state is State.DONE, session.tell()
        taken = [session.slot for session in (*self.live.values(), *self.leaving)]
        assert sorted(taken + self._free_slots) == list(range(self._slots_max)), f"L1: {taken}"

"""Who is where: each sequence is in exactly one place, as its state says.

- QUEUED: in `waiting`. PREFILL and DECODE: in `live`, in order of admission, with a slot.
- DONE with a slot: in `leaving`, until the next plan. DONE with only a lease: in `storing`, until
  that plan's commit. DONE otherwise: forgotten.
- Slots are rows of the device's pools, so the lowest free one is taken first.
"""

from __future__ import annotations

from heapq import heappop, heappush

from sapwood.scheduler.core.sequence import Sequence, SequenceState
from sapwood.scheduler.core.waiting import Waiting


class Roster:
    """The sequences of the core. Every change of state passes here, but PREFILL to DECODE."""

    def __init__(self, slots_max: int, waiting: Waiting) -> None:
        self.waiting = waiting
        self.live: dict[int, Sequence] = {}
        self.leaving: list[Sequence] = []
        self.storing: list[Sequence] = []
        self._slots_max = slots_max
        self._free_slots = list(range(slots_max))  # a heap

    def __bool__(self) -> bool:
        """Whether anybody still needs a step."""
        return bool(self.live or len(self.waiting) or self.leaving or self.storing)

    @property
    def has_free_slot(self) -> bool:
        """Whether another sequence may be given a slot; those that leave still have theirs."""
        return bool(self._free_slots)

    def find(self, id: int) -> Sequence | None:
        """None for a sequence that is DONE or never was."""
        return self.live.get(id) or self.waiting.get(id)

    def in_state(self, state: SequenceState) -> tuple[Sequence, ...]:
        """Those in PREFILL or DECODE, in order of admission."""
        return tuple(sequence for sequence in self.live.values() if sequence.state is state)

    def give_slot(self, sequence: Sequence, now: float, step: int) -> None:
        """The sequence has its lease and its memory; it gets a slot, of which one must be free."""
        self.waiting.take(sequence)
        sequence.move(SequenceState.PREFILL, now, "admitted")
        sequence.slot = heappop(self._free_slots)
        sequence.admitted_at = now
        sequence.served_step = step
        sequence.storing = sequence.lease is not None
        sequence.cached = sequence.processed = sequence.stored
        self.live[sequence.id] = sequence

    def end(self, sequence: Sequence, now: float, why: str) -> None:
        """The one edge to DONE, from any state."""
        if sequence.state is SequenceState.QUEUED:
            self.waiting.remove(sequence)
        else:
            del self.live[sequence.id]
            self.leaving.append(sequence)
        sequence.move(SequenceState.DONE, now, why)

    def leave(self, captured: list[Sequence]) -> None:
        """A plan releases the slots of all that were leaving and captures some of them."""
        for sequence in self.leaving:
            heappush(self._free_slots, sequence.slot)
        self.leaving.clear()
        self.storing.extend(captured)

    def stories(self) -> list[str]:
        """What everybody here went through, without a word of their text."""
        return [
            s.tell() for s in (*self.waiting, *self.live.values(), *self.leaving, *self.storing)
        ]

    def check(self) -> None:
        """L1, and each sequence's range map."""
        for sequence in self.waiting:
            assert sequence.state is SequenceState.QUEUED and sequence.slot < 0, sequence.tell()
        for sequence in self.live.values():
            assert sequence.state in (SequenceState.PREFILL, SequenceState.DECODE), sequence.tell()
            assert (sequence.state is SequenceState.DECODE) == bool(sequence.emitted), (
                sequence.tell()
            )
            assert sequence.stored <= sequence.evaluated, sequence.tell()
        for sequence in self.leaving + self.storing:
            assert sequence.state is SequenceState.DONE, sequence.tell()
        taken = [sequence.slot for sequence in (*self.live.values(), *self.leaving)]
        assert sorted(taken + self._free_slots) == list(range(self._slots_max)), f"L1: {taken}"

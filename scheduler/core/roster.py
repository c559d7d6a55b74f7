"""Who is where: each sequence is in exactly one place, as its state says.

- QUEUED, PARKED: in `waiting`. PREFILL and DECODE: in `live`, in order of admission, with a slot.
- DONE with a slot: in `leaving`, until the next plan. DONE with only a lease: in `storing`, until
  that plan's commit. DONE otherwise: forgotten.
- Slots are rows of the device's pools, so the lowest free one is taken first.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush

from sapwood.scheduler.core.meters import SequenceCounts
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

    @property
    def counts(self) -> SequenceCounts:
        """How many are where; who leaves is nowhere."""
        parked = self.waiting.parked
        return SequenceCounts(len(self.live), len(self.waiting) - parked, parked)

    def find(self, id: int) -> Sequence | None:
        """None for a sequence that is DONE or never was."""
        return self.live.get(id) or self.waiting.get(id)

    def in_state(self, state: SequenceState) -> tuple[Sequence, ...]:
        """Those in PREFILL or DECODE, in order of admission."""
        return tuple(sequence for sequence in self.live.values() if sequence.state is state)

    def give_slot(self, sequence: Sequence, now: float, step: int) -> None:
        """The sequence has its lease and its memory; it gets a slot, of which one must be free."""
        self.waiting.take(sequence)
        if not sequence.parks:
            sequence.admitted_at = now
        sequence.move(SequenceState.PREFILL, now, "resumed" if sequence.parks else "admitted")
        sequence.slot = heappop(self._free_slots)
        sequence.served_step = step
        sequence.storing = sequence.lease is not None
        sequence.evaluated = sequence.stored
        self.live[sequence.id] = sequence

    def end(self, sequence: Sequence, now: float, why: str) -> None:
        """The one edge to DONE, from any state."""
        if sequence.state in (SequenceState.QUEUED, SequenceState.PARKED):
            self.waiting.remove(sequence)
        else:
            del self.live[sequence.id]
            self.leaving.append(sequence)
        sequence.move(SequenceState.DONE, now, why)

    def park(self, sequence: Sequence, now: float, why: str = "memory is short") -> None:
        """A plan takes the sequence's slot away, and releases it; it waits in its rank."""
        del self.live[sequence.id]
        sequence.move(SequenceState.PARKED, now, why)
        heappush(self._free_slots, sequence.slot)
        sequence.park()
        self.waiting.put_back(sequence)

    def leave(self, captured: Iterable[Sequence]) -> None:
        """A plan releases the slots of all that were leaving, and captures of these."""
        for sequence in self.leaving:
            heappush(self._free_slots, sequence.slot)
        self.leaving.clear()
        self.storing += [s for s in captured if s.state is SequenceState.DONE]

    def stories(self) -> list[str]:
        """What everybody here went through, without a word of their text."""
        return [
            s.tell() for s in (*self.waiting, *self.live.values(), *self.leaving, *self.storing)
        ]

    def check(self) -> None:
        """L1, and each sequence's range map."""
        for sequence in self.waiting:
            assert sequence.state is _waiting_state(sequence), sequence.tell()
            assert sequence.slot < 0 and sequence.lease is None, sequence.tell()
        for sequence in self.live.values():
            assert sequence.state in (SequenceState.PREFILL, SequenceState.DECODE), sequence.tell()
            decoding = sequence.state is SequenceState.DECODE
            assert decoding == bool(sequence.emitted) or sequence.parks, sequence.tell()
            assert not decoding or sequence.evaluated == (
                sequence.prompt_tokens + sequence.emitted - 1
            ), sequence.tell()
            assert sequence.stored <= sequence.evaluated, sequence.tell()
        for sequence in self.leaving + self.storing:
            assert sequence.state is SequenceState.DONE, sequence.tell()
        taken = [sequence.slot for sequence in (*self.live.values(), *self.leaving)]
        assert sorted(taken + self._free_slots) == list(range(self._slots_max)), f"L1: {taken}"


def _waiting_state(sequence: Sequence) -> SequenceState:
    return SequenceState.PARKED if sequence.parks else SequenceState.QUEUED

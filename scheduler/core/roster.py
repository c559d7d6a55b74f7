"""Who is where: each sequence is in exactly one place, as its state says.

- QUEUED, PARKED: in `waiting`. PREFILL and DECODE: in `live`, in order of admission, with a slot.
- DONE with a slot: in `leaving`, until the next plan. DONE with only a lease: in `storing`, until
  that plan's commit. DONE otherwise: forgotten.
- Slots are rows of the device's pools, so the lowest free one is taken first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from heapq import heappop, heappush
from itertools import chain, islice

from sapwood.cache.prefix.radix import trail
from sapwood.scheduler.core.line import Line
from sapwood.scheduler.core.meters import SequenceCounts
from sapwood.scheduler.core.sequence import Sequence, SequenceState
from sapwood.scheduler.core.waiting import Waiting
from sapwood.scheduler.events import Request
from sapwood.scheduler.stream_view import StreamView


class Roster:
    """The sequences of the core. Every change of state passes here, but PREFILL to DECODE."""

    def __init__(self, slots_max: int, waiting: Waiting) -> None:
        self.waiting = waiting
        self.live: dict[int, Sequence] = {}
        self.leaving: list[Sequence] = []
        self.storing: list[Sequence] = []
        self.rows: Counter[str] = Counter()  # of `live`, by principal
        self._slots_max = slots_max
        self._free_slots = list(range(slots_max))  # a heap

    def __bool__(self) -> bool:
        """Whether anybody still needs a step."""
        return bool(self.live or len(self.waiting) or self.leaving or self.storing)

    @property
    def free_slots(self) -> int:
        """How many may be given to sequences; those that leave still have theirs."""
        return len(self._free_slots)

    @property
    def counts(self) -> SequenceCounts:
        """How many are where; who leaves is nowhere."""
        parked = self.waiting.parked
        return SequenceCounts(len(self.live), len(self.waiting) - parked, parked)

    @property
    def holders(self) -> tuple[Sequence, ...]:
        """All that may have a lease."""
        return (*self.live.values(), *self.leaving, *self.storing)

    @property
    def readers(self) -> Mapping[int, int]:
        """By the id of a tree's node: how many slots hold full K/V of it by reference."""
        return Counter(
            node.id
            for sequence in (*self.live.values(), *self.leaving)
            if sequence.lease is not None
            for node in trail(sequence.lease.node)
            if node.start < sequence.base
        )

    @property
    def accepted(self) -> list[Request]:
        """All that were let in and have not ended."""
        return [sequence.request for sequence in (*self.waiting, *self.live.values())]

    def views(self, now: float, most: int) -> tuple[StreamView, ...]:
        """Those with a slot, in order of admission, then those that wait; `most` of them."""
        here = chain(self.live.values(), self.waiting)
        return tuple(_view(sequence, now) for sequence in islice(here, most))

    def find(self, id: int) -> Sequence | None:
        """None for a sequence that is DONE or never was."""
        return self.live.get(id) or self.waiting.get(id)

    def in_state(self, state: SequenceState) -> tuple[Sequence, ...]:
        """Those in PREFILL or DECODE, in order of admission."""
        return tuple(sequence for sequence in self.live.values() if sequence.state is state)

    def candidates(self, lines: Iterable[Line]) -> Iterator[Sequence]:
        """Who of these lines may have a slot next, as Waiting.candidates says."""
        oldest = min((sequence.rank for sequence in self.live.values()), default=None)
        return self.waiting.candidates(lines, self.in_state(SequenceState.PREFILL), oldest)

    def give_slot(self, sequence: Sequence, now: float, step: int) -> None:
        """The sequence has its lease and its memory; it gets a slot, of which one must be free."""
        self.waiting.take(sequence)
        self.waiting.begin(sequence.id)
        if not (sequence.parks or sequence.resumed):
            sequence.admitted_at = now
        sequence.move(SequenceState.PREFILL, now, "resumed" if sequence.parks else "admitted")
        sequence.slot = heappop(self._free_slots)
        sequence.served_step = step
        sequence.storing = sequence.lease is not None
        sequence.evaluated = sequence.stored
        self.live[sequence.id] = sequence
        self.rows[sequence.request.principal] += 1

    def end(self, sequence: Sequence, now: float, why: str) -> None:
        """The one edge to DONE, from any state."""
        if sequence.state in (SequenceState.QUEUED, SequenceState.PARKED):
            self.waiting.remove(sequence)
        else:
            self._leave_live(sequence)
            self.leaving.append(sequence)
        sequence.move(SequenceState.DONE, now, why)
        self.waiting.release(sequence.id)

    def park(self, sequence: Sequence, now: float, why: str, *, forced: bool) -> None:
        """A plan takes the sequence's slot away, and releases it; it waits in its rank.

        forced: as in Sequence.park.
        """
        self._leave_live(sequence)
        sequence.move(SequenceState.PARKED, now, why)
        heappush(self._free_slots, sequence.slot)
        sequence.park(forced)
        self.waiting.put_back(sequence)

    def _leave_live(self, sequence: Sequence) -> None:
        del self.live[sequence.id]
        name = sequence.request.principal
        self.rows[name] -= 1
        if not self.rows[name]:
            del self.rows[name]

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
            returned = sequence.parks or sequence.resumed
            assert decoding == bool(sequence.emitted) or returned, sequence.tell()
            assert not decoding or sequence.evaluated == (
                sequence.prompt_tokens + sequence.emitted - 1
            ), sequence.tell()
            assert sequence.stored <= sequence.evaluated, sequence.tell()
        for sequence in self.leaving + self.storing:
            assert sequence.state is SequenceState.DONE, sequence.tell()
        rows = Counter(sequence.request.principal for sequence in self.live.values())
        assert self.rows == rows and all(self.rows.values()), f"L4: {self.rows} of {rows}"
        taken = [sequence.slot for sequence in (*self.live.values(), *self.leaving)]
        assert sorted(taken + self._free_slots) == list(range(self._slots_max)), f"L1: {taken}"


def _view(sequence: Sequence, now: float) -> StreamView:
    reply = sequence.reply
    return StreamView(
        id=sequence.id,
        state=sequence.state.value,
        slot=sequence.slot,
        prompt_tokens=sequence.prompt_tokens,
        cached_tokens=sequence.cached,
        processed_tokens=sequence.processed,
        emitted_tokens=sequence.emitted,
        tokens_max=sequence.tokens_max,
        decode_steps=reply.decode_steps,
        draft_tokens=reply.draft_tokens,
        accepted_tokens=reply.accepted_tokens,
        parks=sequence.parks,
        age_s=now - sequence.submitted_at,
    )


def _waiting_state(sequence: Sequence) -> SequenceState:
    return SequenceState.PARKED if sequence.parks else SequenceState.QUEUED

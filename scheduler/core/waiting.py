"""Sequences that have no slot, in the order they came, and who of them may have one next.

- First come, first served, except that a longer cached prefix goes first, and that one which does
  not fit memory lets others by: nobody is overtaken more than overtaken_max times. Whoever was
  overtaken that often ends the line: nobody behind it is looked at.
- Of two cold requests with one prefix the second waits, without a slot, while a sequence in prefill
  is about to store share_tokens_min or more tokens that the tree does not have for it yet. When
  that sequence ends in any way, the next one in line takes over.
- Who was parked waits where it would have waited, and longer than a queue's place is kept. Parked
  parks_max times, it comes back only as the oldest of all, whom nobody parks.
- A step costs O(1) per waiting sequence; prompts are compared once per pair, as whole slices, and
  only for the first admission_candidates_max that could go.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile

from sapwood.cache.prefix.radix import common
from sapwood.scheduler.core.memory import DeviceMemory
from sapwood.scheduler.core.sequence import Sequence, SequenceState
from sapwood.scheduler.limits import Limits


class Waiting:
    """The queue of QUEUED and PARKED sequences."""

    def __init__(self, limits: Limits, memory: DeviceMemory) -> None:
        self._limits = limits
        self._memory = memory
        self._sequences: dict[int, Sequence] = {}
        self._came = 0

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences.values())

    @property
    def full(self) -> bool:
        """Whether a new sequence is to be refused; add() does not look."""
        return len(self._sequences) >= self._limits.queued_max

    def get(self, id: int) -> Sequence | None:
        """None for a sequence that is not in the queue."""
        return self._sequences.get(id)

    @property
    def parked(self) -> int:
        """How many of them were parked."""
        return sum(sequence.state is SequenceState.PARKED for sequence in self)

    @property
    def queued(self) -> list[Sequence]:
        """Those that never had a slot."""
        return [sequence for sequence in self if sequence.state is SequenceState.QUEUED]

    def put_back(self, sequence: Sequence) -> None:
        """The sequence was parked: it comes before all that came after it."""
        self._sequences[sequence.id] = sequence
        self._sequences = dict(sorted(self._sequences.items(), key=lambda item: item[1].rank))

    def add(self, sequence: Sequence) -> None:
        """The sequence comes last."""
        self._came += 1
        sequence.rank = self._came
        self._sequences[sequence.id] = sequence

    def remove(self, sequence: Sequence) -> None:
        """The sequence ended while it waited."""
        del self._sequences[sequence.id]

    def take(self, sequence: Sequence) -> None:
        """The sequence gets a slot: it overtakes all that came before it."""
        for other in takewhile(lambda other: other is not sequence, self):
            other.overtaken += 1
        self.remove(sequence)
        sequence.awaited = None

    def candidates(self, prefilling: tuple[Sequence, ...], oldest: int | None) -> list[Sequence]:
        """Who may go next, the first choice first; memory may still refuse each of them.

        oldest: the lowest rank of those that live, None where nobody does.
        """
        found: list[Sequence] = []
        looked = 0
        for sequence in self._sequences.values():
            if not _still_awaits(sequence) and self._may_come(sequence, oldest):
                looked += 1
                if self._memory.may_fit(sequence) and not self._awaits(sequence, prefilling):
                    found.append(sequence)
            if looked == self._limits.admission_candidates_max:
                break
            if sequence.overtaken >= self._limits.overtaken_max:
                break
        found.sort(key=lambda sequence: -self._memory.match(sequence).tokens)  # stable: then FIFO
        return found

    def _may_come(self, sequence: Sequence, oldest: int | None) -> bool:
        if sequence.parks < self._limits.parks_max:
            return True
        return sequence is next(iter(self)) and (oldest is None or sequence.rank < oldest)

    def _awaits(self, sequence: Sequence, prefilling: tuple[Sequence, ...]) -> bool:
        """Remember and tell whether somebody in prefill will soon store a prefix of `sequence`."""
        sequence.awaited = None
        if sequence.request.cache_bypass:
            return False
        cached = self._memory.match(sequence).tokens
        shared = {other.id: _shared(sequence, other) for other in prefilling if other.storing}
        sequence.common = shared  # of those that are still there, so it stays small
        for other in prefilling:
            prefix = shared.get(other.id, 0)
            if prefix > other.stored and prefix - cached >= self._limits.share_tokens_min:
                sequence.awaited = other, prefix
                return True
        return False


def _still_awaits(sequence: Sequence) -> bool:
    if sequence.awaited is None:
        return False
    other, prefix = sequence.awaited
    return other.state is SequenceState.PREFILL and other.storing and other.stored < prefix


def _shared(sequence: Sequence, other: Sequence) -> int:
    """Tokens that `sequence` could restore of what `other` will have stored after its prefill."""
    known = sequence.common.get(other.id)
    if known is not None:
        return known
    if sequence.request.root != other.request.root:
        return 0
    ours, theirs = sequence.packed, other.packed
    return common(theirs, 0, ours, 0, len(ours) - 1)

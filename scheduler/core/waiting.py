"""Sequences that have no slot, in the order they came, and who of them may have one next.

- Each principal has a line for each priority. Which line is next is not decided here (fairness.py).
- In a line first come, first served, except that a longer cached prefix goes first, and that one
  which does not fit memory lets others by: nobody is overtaken more than overtaken_max times. Who
  was overtaken that often ends its line: nobody behind it is looked at. Where memory has refused it
  every line ends there, for then others' turns have cost it its own.
- Of two cold requests with one prefix the second waits, without a slot, while a sequence in prefill
  is about to store share_tokens_min or more tokens that the tree does not have for it yet. When
  that sequence ends in any way, the next one in line takes over.
- Who waits for the disk (page_ins.py) is not looked at meanwhile.
- Who was parked waits where it would have waited, and longer than a queue's place is kept. Forced
  to parks_max times, it comes back only as the oldest of all, whom nobody parks.
- Forks stand aside, in no line, until their leader has read the prompt or ended; then they stand in
  their line by their rank. Once the leader has had a slot they have begun with it: neither the
  queue's time nor a drain ends them.
- A step costs O(1) per waiting sequence; prompts are compared once per pair, as whole slices, and
  only for the first admission_candidates_max of a line that could go, in as many lines; memory is
  asked for so many in all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice, takewhile

from sapwood.cache.prefix.radix import common
from sapwood.scheduler.core.line import Line, LineName, line_of
from sapwood.scheduler.core.memory import DeviceMemory
from sapwood.scheduler.core.sequence import Sequence, SequenceState
from sapwood.scheduler.events import Request
from sapwood.scheduler.limits import Limits


class Waiting:
    """The queue of QUEUED and PARKED sequences."""

    def __init__(self, limits: Limits, memory: DeviceMemory) -> None:
        self._limits = limits
        self._memory = memory
        self._sequences: dict[int, Sequence] = {}
        self._lines: dict[LineName, Line] = {}
        self._refused: list[Sequence] = []  # by memory, since somebody was taken
        self._came = 0
        self._aside: dict[int, list[Sequence]] = {}  # by the id of whom they are forks of

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences.values())

    @property
    def lines(self) -> Iterable[Line]:
        """Those in which somebody waits."""
        return self._lines.values()

    @property
    def refused(self) -> list[Sequence]:
        """Whom memory refused when last somebody was looked for, in the order of their turns."""
        return [sequence for sequence in self._refused if sequence.id in self._sequences]

    @property
    def full(self) -> bool:
        """Whether a new sequence is to be refused; add() does not look."""
        return len(self._sequences) >= self._limits.queued_max

    def displaced_by(self, request: Request) -> Sequence | None:
        """Whose place in a full queue is the request's: of who has most, by weight, the newest.

        None where that is its own principal, or would have less then. Nobody who was parked.
        """
        waiting: Counter[str] = Counter()
        queued: dict[str, Sequence] = {}
        for sequence in self:
            waiting[sequence.request.principal] += 1
            if sequence.state is SequenceState.QUEUED and not sequence.begun:
                queued[sequence.request.principal] = sequence
        ranked = [(waiting[name] / last.request.weight, name) for name, last in queued.items()]
        most, name = max(ranked, default=(0.0, ""))
        ours = (waiting[request.principal] + 1) / request.weight
        return queued[name] if ours < most else None

    def get(self, id: int) -> Sequence | None:
        """None for a sequence that is not in the queue."""
        return self._sequences.get(id)

    @property
    def parked(self) -> int:
        """How many of them were parked."""
        return sum(sequence.state is SequenceState.PARKED for sequence in self)

    @property
    def queued(self) -> list[Sequence]:
        """Those that never had a slot, nor a part in another's."""
        return [s for s in self if s.state is SequenceState.QUEUED and not s.begun]

    def put_back(self, sequence: Sequence) -> None:
        """The sequence was parked: it comes before all that came after it."""
        self._sequences[sequence.id] = sequence
        self._sequences = dict(sorted(self._sequences.items(), key=lambda item: item[1].rank))
        self._line_of(sequence).add(sequence)

    def add(self, sequence: Sequence) -> None:
        """The sequence comes last. A fork comes behind its leader, and waits for it."""
        self._came += 1
        sequence.rank = self._came
        self._sequences[sequence.id] = sequence
        leader = sequence.request.fork_of
        if leader is not None and sequence.reads_tree:
            self._aside.setdefault(leader, []).append(sequence)
        else:
            self._line_of(sequence).add(sequence)

    def begin(self, leader: int) -> None:
        """It has a slot: its forks have begun too."""
        for fork in self._aside.get(leader, ()):
            fork.begun = True

    def release(self, leader: int) -> None:
        """It has read its prompt, or ended: its forks may have slots."""
        for fork in self._aside.pop(leader, ()):
            self._line_of(fork).add(fork)

    def remove(self, sequence: Sequence) -> None:
        """The sequence ended while it waited."""
        del self._sequences[sequence.id]
        aside = self._aside.get(sequence.request.fork_of or 0, [])
        if sequence in aside:
            aside.remove(sequence)
            return
        line = self._line_of(sequence)
        del line.sequences[sequence.id]
        if not line.sequences:
            del self._lines[line_of(sequence)]

    def take(self, sequence: Sequence) -> None:
        """The sequence gets a slot: it overtakes all that came before it in its line.

        And whoever of other lines was refused before it, for want of memory.
        """
        line = self._line_of(sequence)
        refused = [other for other in self._refused if line_of(other) != line_of(sequence)]
        before = takewhile(lambda other: other is not sequence, line.sequences.values())
        for overtaken in (*before, *refused):
            overtaken.overtaken += 1
        for other in self._lines.values():
            other.passed += other.gives_way_to(line)
        line.passed = 0
        self._refused.clear()
        self.remove(sequence)
        sequence.awaited = None

    def candidates(
        self, lines: Iterable[Line], prefilling: tuple[Sequence, ...], oldest: int | None
    ) -> Iterator[Sequence]:
        """Who may go next, the first choice first: another where memory refuses the last one.

        lines: in the order of their turns. oldest: the lowest rank of those that live, None where
        nobody does.
        """
        self._refused.clear()
        tries = self._limits.admission_candidates_max
        for line in islice(self._moving(lines, oldest), tries):
            before = len(self._refused)
            for sequence in self._first_of(line, prefilling, oldest)[:tries]:
                yield sequence
                self._refused.append(sequence)
                tries -= 1
            if not tries or any(map(self._ends_line, self._refused[before:])):
                return

    def _moving(self, lines: Iterable[Line], oldest: int | None) -> Iterator[Line]:
        """Those in which somebody waits for nothing but a place."""
        for line in lines:
            if any(self._may_come(sequence, oldest) for sequence in line.sequences.values()):
                yield line

    def _first_of(
        self, line: Line, prefilling: tuple[Sequence, ...], oldest: int | None
    ) -> list[Sequence]:
        found: list[Sequence] = []
        looked = 0
        for sequence in line.sequences.values():
            if self._may_come(sequence, oldest):
                looked += 1
                if not self._memory.may_fit(sequence):
                    self._refused.append(sequence)
                elif not (self._awaits(sequence, prefilling) or self._reads(sequence)):
                    found.append(sequence)
            if looked == self._limits.admission_candidates_max or self._ends_line(sequence):
                break
        found.sort(key=lambda sequence: -self._memory.match(sequence).tokens)  # stable: then FIFO
        return found

    def _ends_line(self, sequence: Sequence) -> bool:
        return sequence.overtaken >= self._limits.overtaken_max

    def _line_of(self, sequence: Sequence) -> Line:
        name = line_of(sequence)
        line = self._lines.get(name)
        if line is None:
            line = self._lines[name] = Line(name)
        return line

    def _may_come(self, sequence: Sequence, oldest: int | None) -> bool:
        if _still_awaits(sequence) or self._memory.disk.waits(sequence):
            return False
        if sequence.forced < self._limits.parks_max:
            return True
        return sequence is next(iter(self)) and (oldest is None or sequence.rank < oldest)

    def _reads(self, sequence: Sequence) -> bool:
        """Whether it waits for the disk, from now on or for longer."""
        return self._memory.disk.awaits(sequence, self._memory.match(sequence))

    def _awaits(self, sequence: Sequence, prefilling: tuple[Sequence, ...]) -> bool:
        """Remember and tell whether somebody in prefill will soon store a prefix of `sequence`."""
        sequence.awaited = None
        if not sequence.reads_tree:
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

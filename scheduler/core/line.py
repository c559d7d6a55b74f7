"""Who waits of one principal with one priority, in the order they came.

- A line is passed by the more urgent ones of its principal. Passed `passed_max` times it goes
  before them, once: nobody starves. It gives way to nobody else's: an urgency buys nothing of
  others' shares.
"""

from __future__ import annotations

from sapwood.scheduler.core.sequence import Sequence
from sapwood.scheduler.events import Priority

LineName = tuple[str, Priority]


class Line:
    """One line of those who wait; it is there as long as somebody stands in it."""

    __slots__ = ("passed", "principal", "priority", "sequences")

    def __init__(self, name: LineName) -> None:
        self.principal, self.priority = name
        self.sequences: dict[int, Sequence] = {}
        self.passed = 0  # admissions out of its principal's more urgent lines, since its own last

    def add(self, sequence: Sequence) -> None:
        """In its rank; most are the last."""
        last = next(reversed(self.sequences.values()), None)
        self.sequences[sequence.id] = sequence
        if last is not None and last.rank > sequence.rank:
            by_rank = sorted(self.sequences.values(), key=lambda other: other.rank)
            self.sequences = {other.id: other for other in by_rank}

    def gives_way_to(self, other: Line) -> bool:
        """Whether an admission out of `other` passes this one."""
        return self.principal == other.principal and self.priority > other.priority


def line_of(sequence: Sequence) -> LineName:
    """Where the sequence waits."""
    return sequence.request.principal, sequence.request.priority

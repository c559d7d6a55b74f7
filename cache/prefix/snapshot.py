"""What the prefix tree may know of stored K/V: ranges, bytes and four operations.

- A Payload is one buffer of the device for each kind of layer of which it holds anything.
- A Payload holds the K/V of one edge, tokens [start, end): full-attention layers all of it, sliding
  layers its newest part [sliding_start, end), possibly nothing (sliding_start == end).
- Operations that *take* consume their inputs: the caller may not use or close them again.
- Every payload is closed exactly once, directly or by being taken.
"""

from __future__ import annotations

from typing import Protocol


class Payload(Protocol):
    """K/V of tokens [start, end) of one path. Immutable.

    What an operation gives may be made later: its sources stay in memory until the device is asked
    for all copies, at the end of a plan and of a commit.
    """

    @property
    def start(self) -> int:
        """Position of the edge's first token."""

    @property
    def end(self) -> int:
        """One past the position of its last token."""

    @property
    def sliding_start(self) -> int:
        """Sliding layers hold [sliding_start, end)."""

    @property
    def full_bytes(self) -> int:
        """Bytes of full-attention layers, over the whole edge, in whole pages of the device."""

    @property
    def sliding_bytes(self) -> int:
        """Bytes of sliding layers, over [sliding_start, end); 0 where that is empty."""

    def split(self, at: int) -> tuple[Payload, Payload]:
        """[start, at) and [at, end) for start < at < end. Takes self."""

    def merge(self, child: Payload) -> Payload:
        """[start, child.end) where child.start == end. Takes both.

        A gap between the two sliding ranges keeps only the child's.
        """

    def thin(self, sliding_start: int) -> Payload:
        """Drop the sliding K/V before `sliding_start`. Takes self."""

    def copy(self, start: int, end: int, sliding_start: int) -> Payload:
        """[start, end) of it once more, with as much sliding K/V as there is from sliding_start on.

        Leaves self as it is.
        """

    def close(self) -> None:
        """Free the arrays. Exactly once."""

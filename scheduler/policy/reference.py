"""How much of a restored prefix is held by reference, and how much is copied into the slot's row.

- An edge that several live sequences hold is read once for all of them, in a call of its own in
  every full layer. So it pays where the others would read enough: tokens times the other readers.
- An edge that one has for itself is read as often in either place, and in its row together with
  everybody's: by reference it saves the copy's room and nothing else. It is for when room is short.
- What lies behind the last edge that pays is copied: a few tokens each would be as many calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

STRETCHES_MAX = 8  # of one sequence, when it comes

Edge = tuple[int, int]  # (end, live sequences that hold it), from the root on; readers never rise


def read_once_tokens(edges: Sequence[Edge], reads_min: int) -> int:
    """Where the prefix ends that is worth being read once for all.

    reads_min: tokens that have to be read once less for a call to pay.
    """
    ends = [end for end, _ in edges[:STRETCHES_MAX]]
    starts = (0, *ends)
    gains = (
        (end - start) * (readers - 1) - reads_min
        for start, (end, readers) in zip(starts, edges[:STRETCHES_MAX], strict=False)
    )
    best, base = 0, 0
    for end, gain in zip(ends, accumulate(gains), strict=True):
        if gain >= best:
            best, base = gain, end
    return base


def long_tokens(edges: Sequence[Edge], edge_tokens_min: int) -> int:
    """Where the prefix ends whose edges have so many tokens on average."""
    ends = [end for end, _ in edges[:STRETCHES_MAX]]
    return max((end for n, end in enumerate(ends, 1) if end >= n * edge_tokens_min), default=0)

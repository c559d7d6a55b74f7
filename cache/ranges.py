"""Stored K/V of one layer over a range of tokens, and of one edge over all layers.

- A Range holds keys and values [kv_heads, end - start, D] of tokens [start, end), evaluated, and owns
  its arrays: never a view into a live pool, which would make the pool's next write a full copy.
- `split` and `merge` take their inputs; a taken or closed range is dead and says so.
- An EdgePayload is what the prefix tree stores for one edge: all full layers over the whole edge,
  all sliding layers over the same newest part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import mlx.core as mx

from cache.snapshot import Payload


@dataclass(slots=True)
class Range:
    """K/V of tokens [start, end) of one layer: the contract's Snapshot."""

    start: int
    end: int
    keys: mx.array
    values: mx.array
    closed: bool = field(default=False)

    def __post_init__(self) -> None:
        assert self.start < self.end, (self.start, self.end)
        assert self.keys.shape[-2] == self.values.shape[-2] == self.end - self.start

    @property
    def nbytes(self) -> int:
        return int(self.keys.nbytes + self.values.nbytes)

    def close(self) -> None:
        assert not self.closed, f"range [{self.start}, {self.end}) closed twice"
        self.closed = True
        self.keys = self.values = mx.array(())

    def part(self, start: int, end: int) -> Range:
        """A copy of [start, end), lazily; the caller evaluates it."""
        assert self.start <= start < end <= self.end and not self.closed
        at = slice(start - self.start, end - self.start)
        return Range(
            start, end, mx.contiguous(self.keys[:, at]), mx.contiguous(self.values[:, at])
        )


def split_range(snapshot: Range | None, at: int) -> tuple[Range | None, Range | None]:
    """[a, at) and [at, c); at or outside an end, one side is None. Takes the snapshot."""
    if snapshot is None:
        return None, None
    if at <= snapshot.start:
        return None, snapshot
    if at >= snapshot.end:
        return snapshot, None
    left, right = snapshot.part(snapshot.start, at), snapshot.part(at, snapshot.end)
    snapshot.close()
    return left, right


def join_ranges(parent: Range, child: Range) -> Range:
    """[a, b) + [b, c) = [a, c). Takes both."""
    assert parent.end == child.start, (parent.end, child.start)
    joined = Range(
        parent.start,
        child.end,
        mx.concatenate([parent.keys, child.keys], axis=1),
        mx.concatenate([parent.values, child.values], axis=1),
    )
    parent.close()
    child.close()
    return joined


def merge_full(parent: Range | None, child: Range | None) -> Range | None:
    """Full layers have no use for half a range: a missing side closes the other."""
    if parent is not None and child is not None:
        return join_ranges(parent, child)
    for side in (parent, child):
        if side is not None:
            side.close()
    return None


def merge_sliding(parent: Range | None, child: Range | None) -> Range | None:
    """Only the newest part matters: without a child nothing is left, over a gap only the child."""
    if child is None:
        if parent is not None:
            parent.close()
        return None
    if parent is None:
        return child
    if parent.end != child.start:
        parent.close()
        return child
    return join_ranges(parent, child)


def evaluated(ranges: Sequence[Range | None]) -> None:
    """Evaluate what was built lazily, at once."""
    mx.eval([a for r in ranges if r is not None for a in (r.keys, r.values)])


Ranges = tuple[Range | None, ...]


@dataclass(slots=True)
class EdgePayload:
    """All layers' K/V of one edge [start, end): the arrays behind cache.snapshot.Payload.

    full: one Range per full layer over [start, end). sliding: one per sliding layer over
    [sliding_start, end), or all None where that is empty.
    """

    start: int
    end: int
    full: Ranges
    sliding: Ranges

    @property
    def sliding_start(self) -> int:
        held = next((r for r in self.sliding if r is not None), None)
        return self.end if held is None else held.start

    @property
    def full_bytes(self) -> int:
        return sum(r.nbytes for r in self.full if r is not None)

    @property
    def sliding_bytes(self) -> int:
        return sum(r.nbytes for r in self.sliding if r is not None)

    def split(self, at: int) -> tuple[Payload, Payload]:
        assert self.start < at < self.end, (self.start, at, self.end)
        full = [split_range(r, at) for r in self.full]
        sliding = [split_range(r, at) for r in self.sliding]
        evaluated([r for pair in (*full, *sliding) for r in pair])
        sides = [
            EdgePayload(a, b, tuple(p[i] for p in full), tuple(p[i] for p in sliding))
            for i, (a, b) in enumerate(((self.start, at), (at, self.end)))
        ]
        return sides[0], sides[1]

    def merge(self, child: Payload) -> Payload:
        assert isinstance(child, EdgePayload) and self.end == child.start, (self.end, child.start)
        full = self._pairwise(merge_full, self.full, child.full)
        sliding = self._pairwise(merge_sliding, self.sliding, child.sliding)
        evaluated([*full, *sliding])
        return EdgePayload(self.start, child.end, full, sliding)

    def thin(self, sliding_start: int) -> Payload:
        assert sliding_start <= self.end
        kept = []
        for held in self.sliding:
            dropped, rest = split_range(held, sliding_start)
            if dropped is not None:
                dropped.close()
            kept.append(rest)
        evaluated(kept)
        return EdgePayload(self.start, self.end, self.full, tuple(kept))

    def close(self) -> None:
        for held in (*self.full, *self.sliding):
            if held is not None:
                held.close()

    @staticmethod
    def _pairwise(
        merge: Callable[[Range | None, Range | None], Range | None], left: Ranges, right: Ranges
    ) -> Ranges:
        return tuple(merge(a, b) for a, b in zip(left, right, strict=True))

"""One step's packed tokens: who owns which row, and the index arrays that every layer shares.

- Tokens are packed flat, [T]: the decode spans in order, then the prefill spans; no padding.
- A span is [start, start + length) of absolute positions of one slot; a slot has at most one span.
- Past the last layer that owns K/V only the rows whose output is needed continue ("kept" rows):
  all decode rows, and the last row of a prefill span that draws. Which is exact: nobody reads the rest.
- Index arrays are built once per step and shared by all layers through `shared`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import mlx.core as mx
import numpy as np
import numpy.typing as npt

Table = TypeVar("Table")
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Span:
    """Packed tokens [start, end) of the session in `slot`. `draws`: its last row's output is needed."""

    slot: int
    start: int
    length: int
    draws: bool = True

    @property
    def end(self) -> int:
        return self.start + self.length


class Batch:
    """The packed layout of one target forward."""

    def __init__(self, decodes: Sequence[Span], prefills: Sequence[Span] = ()) -> None:
        self.decodes = tuple(decodes)
        self.prefills = tuple(prefills)
        spans = self.decodes + self.prefills
        assert spans, "a batch without tokens"
        assert len({s.slot for s in spans}) == len(spans), "one span per slot and step"
        lengths = [s.length for s in spans]
        assert min(lengths) > 0, "an empty span"
        firsts = np.cumsum([0, *lengths])
        #: first packed row of every span, decodes then prefills
        self.firsts: tuple[int, ...] = tuple(firsts[:-1].tolist())
        self.tokens = int(firsts[-1])
        self.decode_tokens = int(firsts[len(self.decodes)])
        self._shared: dict[object, object] = {}

    def shared(self, key: object, build: Callable[[], Table]) -> Table:
        """The step's one copy of a table, built on first use."""
        if key not in self._shared:
            self._shared[key] = build()
        return cast("Table", self._shared[key])

    @property
    def positions_host(self) -> Ints:
        """[T] absolute position of every packed row."""
        spans = self.decodes + self.prefills
        return np.concatenate([np.arange(s.start, s.end, dtype=np.int32) for s in spans])

    @property
    def kept_host(self) -> Ints:
        """Packed rows whose output is needed, in packed order."""
        last = [
            first + span.length - 1
            for span, first in zip(self.prefills, self.firsts[len(self.decodes) :], strict=True)
            if span.draws
        ]
        return np.concatenate([np.arange(self.decode_tokens), np.array(last, dtype=np.int64)]).astype(
            np.int32
        )

    @property
    def positions(self) -> mx.array:
        return self.shared("positions", lambda: mx.array(self.positions_host))

    @property
    def kept(self) -> mx.array | None:
        """Device copy of kept_host; None where every row is kept."""
        if all(s.draws and s.length == 1 for s in self.prefills):
            return None
        return self.shared("kept", lambda: mx.array(self.kept_host))

    @property
    def kept_positions(self) -> mx.array:
        return self.shared("kept_positions", lambda: mx.array(self.positions_host[self.kept_host]))

    def queries_of(self, index: int, trimmed: bool) -> tuple[int, int]:
        """[first, end) of prefill `index`'s rows in the full or the trimmed packing.

        In the trimmed packing a drawing span keeps its last row, any other none.
        """
        if not trimmed:
            first = self.firsts[len(self.decodes) + index]
            return first, first + self.prefills[index].length
        before = sum(s.draws for s in self.prefills[:index])
        first = self.decode_tokens + before
        return first, first + int(self.prefills[index].draws)


@dataclass(frozen=True, slots=True)
class Grid:
    """Decode rows of a batch laid over rows of a pool, padded to one query length.

    rows: pool rows [n] that the attention reads, as a prefix length or as explicit indices.
    gather: [n, Q] packed row that supplies each padded query; padding repeats an arbitrary row.
    starts, ends: [n] absolute position of a row's first query, and one past its last (0, 0 where the
    pool row is nobody's).
    spans: packed row of every real query in order of `places`, its place in [n * Q].
    """

    prefix: int | None
    rows: Ints
    gather: Ints
    starts: Ints
    ends: Ints
    queries: int
    packed: Ints
    places: Ints

    @classmethod
    def over(cls, spans: Sequence[Span], firsts: Sequence[int], rows: Sequence[int]) -> Grid:
        """Lay spans (packed from `firsts`) over pool `rows`.

        A prefix of the pool is a view and costs nothing to read, so holes in it are read along
        unless they outnumber the owners: then the owners' rows are gathered, which copies them.
        """
        count = max(rows) + 1
        prefix = count if count <= 2 * len(rows) else None
        order = np.array(rows) if prefix is not None else np.arange(len(rows))
        n = prefix if prefix is not None else len(rows)
        queries = max(s.length for s in spans)
        gather = np.zeros((n, queries), np.int32)
        starts, ends = np.zeros(n, np.int32), np.zeros(n, np.int32)
        packed, places = [], []
        for place, span, first in zip(order.tolist(), spans, firsts, strict=True):
            gather[place, : span.length] = np.arange(first, first + span.length)
            starts[place], ends[place] = span.start, span.end
            packed.append(np.arange(first, first + span.length))
            places.append(place * queries + np.arange(span.length))
        taken = np.array(rows if prefix is None else range(n), np.int32)
        return cls(
            prefix, taken, gather, starts, ends, queries,
            np.concatenate(packed).astype(np.int32), np.concatenate(places).astype(np.int32),
        )  # fmt: skip

    @property
    def plain(self) -> bool:
        """Whether padded and packed order are the same, so that nothing has to be gathered."""
        return self.gather.size == self.packed.size and bool(
            np.array_equal(self.gather.ravel(), self.packed)
            and np.array_equal(self.places, np.arange(self.places.size))
        )

"""One step's packed tokens: who owns which row, and the index arrays that every layer shares.

- Tokens are packed flat, [T]: the decode spans in order, then the prefill spans; no padding.
- A span is [start, start + length) of absolute positions of one slot; a slot has at most one
  span.
- Past the last layer that owns K/V only the rows whose output is needed continue ("kept" rows):
  all decode rows, the last row of a prefill span that draws, and all rows of one that is scored.
  Which is exact: nobody reads the rest.
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


def indices(start: int, end: int) -> Ints:
    """[start, end) as indices."""
    return np.arange(start, end, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens [start, end) of the sequence in `slot`. `draws`: its last row's output is needed.

    scored: the output of all its rows is.
    """

    slot: int
    start: int
    length: int
    draws: bool = True
    scored: bool = False

    @property
    def end(self) -> int:
        """One past its last position."""
        return self.start + self.length

    @property
    def kept(self) -> int:
        """How many of its last rows go on past the last layer that owns K/V."""
        return self.length if self.scored else int(self.draws)


class Batch:
    """The packed layout of one target forward."""

    def __init__(self, decodes: Sequence[Span], prefills: Sequence[Span] = ()) -> None:
        self.decodes = tuple(decodes)
        self.prefills = tuple(prefills)
        self.spans = self.decodes + self.prefills
        assert self.spans, "a batch without tokens"
        assert len({s.slot for s in self.spans}) == len(self.spans), "one span per slot and step"
        lengths = [s.length for s in self.spans]
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
        found: list[int] = []
        for span in self.spans:
            found += range(span.start, span.end)
        return np.array(found, np.int32)

    @property
    def kept_host(self) -> Ints:
        """Packed rows whose output is needed, in packed order."""
        firsts = self.firsts[len(self.decodes) :]
        ends = [first + s.length for s, first in zip(self.prefills, firsts, strict=True)]
        last = [indices(e - s.kept, e) for s, e in zip(self.prefills, ends, strict=True)]
        return np.concatenate([indices(0, self.decode_tokens), *last])

    @property
    def positions(self) -> mx.array:
        """Device copy of positions_host, int32 [T]."""
        return self.shared("positions", lambda: mx.array(self.positions_host))

    @property
    def kept(self) -> mx.array | None:
        """Device copy of kept_host; None where every row is kept."""
        if all(s.kept == s.length for s in self.prefills):
            return None
        return self.shared("kept", lambda: mx.array(self.kept_host))

    @property
    def kept_positions(self) -> mx.array:
        """int32 [kept rows]: the absolute position of each kept row."""
        return self.shared("kept_positions", lambda: mx.array(self.positions_host[self.kept_host]))

    def queries_of(self, index: int, trimmed: bool) -> tuple[int, int]:
        """[first, end) of prefill `index`'s rows in the full or the trimmed packing.

        In the trimmed packing a span keeps its last `kept` rows.
        """
        if not trimmed:
            first = self.firsts[len(self.decodes) + index]
            return first, first + self.prefills[index].length
        first = self.decode_tokens + sum(s.kept for s in self.prefills[:index])
        return first, first + self.prefills[index].kept

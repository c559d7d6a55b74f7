"""A round's drafts, on the device: the assistant run for every row that speculates.

- Rows draft together whatever their positions; a row that wants fewer drafts drops out early, so
  rows are ordered deepest first, and iteration j runs the first n_j of them.
- The drafter reads the target's committed K/V only (last sliding and last full layer that own some)
  and writes none.
- Its position is constant over a round: the bonus token's slot, or the last committed one.
  Implementations differ, output does not depend on it. `bonus` sees W + 1 sliding keys, `last` W.
- A row that wants bias or penalties has them here too, with its own drafts so far as history; what
  the model never generates is not drafted, nor what would end a reply too early.
- What a constraint forces takes the place of what the drafter says, which goes on from there; a row
  whose drafts are all forced does not pass the drafter at all.
- Lazy throughout: drafts feed the target's forward without passing the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from sapwood.cache.arrays.attention import History
from sapwood.cache.arrays.batch import Batch, Span
from sapwood.cache.arrays.live_caches import LiveCaches
from sapwood.cache.arrays.window import WindowStore
from sapwood.model.assistant import Assistant, Turns
from sapwood.model.gemma4 import PackedGemma4
from sapwood.model.sampling.distribution import DrawRows
from sapwood.model.sampling.proposals import DraftDistribution, draft, without_ends
from sapwood.model.sampling.suppression import Suppression
from sapwood.scheduler.plan import DecodeRow, PrefillSlice

DraftPosition = Literal["bonus", "last"]


@dataclass(frozen=True, slots=True)
class Drafts:
    """tokens: int32 [all drafts], the iterations joined, on the device.

    at: host [B, deepest]; at[b, j] is where row b's draft j lies in `tokens`, 0 past its own depth.
    distributions: one for each iteration, as `draft` gives it.
    """

    tokens: mx.array
    at: npt.NDArray[np.int32]
    distributions: tuple[DraftDistribution | None, ...]

    def table(self, rows: int) -> mx.array:
        """int32 [rows, deepest]; anything past a row's depth and in rows past the decodes."""
        at = np.zeros((rows, self.at.shape[1]), np.int32)
        at[: len(self.at)] = self.at
        return self.tokens[mx.array(at)]


class Drafter:
    """The assistant over the target's caches."""

    def __init__(
        self,
        assistant: Assistant,
        target: PackedGemma4,
        caches: LiveCaches,
        suppression: Suppression,
        position: DraftPosition = "bonus",
    ) -> None:
        self.assistant, self.target = assistant, target
        assistant.prepare(target.kernels)
        self.suppression = suppression
        self.back = 0 if position == "bonus" else 1
        self.donors = {kind: caches.stores[index] for kind, index in target.donors.items()}
        self.keep = caches.window + 1 - self.back

    def run(
        self,
        decodes: Sequence[DecodeRow],
        frontier: mx.array,
        rows: DrawRows,
        built: Callable[[mx.array], object],
        forced: Sequence[Sequence[int]],
    ) -> Drafts:
        """Draft for `decodes`, at least one deeper than 0; `rows` describes the same rows first.

        frontier [slots, hidden]: the target's final-norm hidden row at each slot's last position.
        built: called with each iteration's tokens, before the next one is built. forced: of each
        row the tokens that are its first drafts.
        """
        order = sorted(range(len(decodes)), key=lambda i: -decodes[i].iterations)
        at = np.zeros((len(decodes), max(d.depth for d in decodes)), np.int32)
        drawn: list[mx.array] = []
        distributions: list[DraftDistribution | None] = []
        live: list[int] = []
        for depth in range(decodes[order[0]].iterations):
            remaining = [i for i in order if decodes[i].iterations > depth]
            if len(remaining) != len(live):
                attend, turns = self._view([decodes[i] for i in remaining])
                if not live:
                    tokens, hidden = self._inputs([decodes[i] for i in remaining], frontier)
                live, count = remaining, len(remaining)
                tokens, hidden = tokens[:count], hidden[:count]
            logits, hidden = self.assistant.step(self.target.embed(tokens), hidden, turns, attend)
            logits = without_ends(self.suppression.of_drafter(logits), rows, live, depth)
            tokens, distribution = draft(logits, rows, tuple(live), depth, drawn)
            tokens = _with_forced(tokens, [forced[i][depth : depth + 1] for i in live])
            built(tokens)
            at[live, depth] = sum(t.size for t in drawn) + np.arange(len(live))
            drawn.append(tokens)
            distributions.append(distribution)
        count = sum(t.size for t in drawn)
        for i, row in enumerate(decodes):
            if row.depth and not row.iterations:
                at[i, : row.depth] = count + np.arange(row.depth)
                drawn.append(mx.array(list(forced[i]), mx.int32))
                count += row.depth
        return Drafts(mx.concatenate(drawn), at, tuple(distributions))

    def _inputs(
        self, decodes: Sequence[DecodeRow], frontier: mx.array
    ) -> tuple[mx.array, mx.array]:
        tokens = mx.array(np.array([d.token for d in decodes], np.int32))
        return tokens, frontier[mx.array(np.array([d.slot for d in decodes], np.int32))]

    def _view(
        self, decodes: Sequence[DecodeRow]
    ) -> tuple[Callable[[str, mx.array], mx.array], Turns]:
        """Attention over what each row has committed, and what rotates the rows."""
        batch = Batch([Span(d.slot, d.start - 1, 1) for d in decodes])
        histories: dict[str, History] = {
            kind: store.view(batch, self.keep)
            if isinstance(store, WindowStore)
            else store.view(batch)
            for kind, store in self.donors.items()
        }
        positions = np.array([d.start - self.back for d in decodes], np.int32)
        turns = self.assistant.turns(mx.array(positions), self.target.kernels)
        return (lambda kind, queries: histories[kind].attend(queries)), turns


def _with_forced(tokens: mx.array, forced: Sequence[Sequence[int]]) -> mx.array:
    """[n] drafts; forced: of each row the one that is known, or none."""
    if not any(forced):
        return tokens
    known = mx.array([row[0] if row else -1 for row in forced], mx.int32)
    return mx.where(known < 0, tokens, known)


def packed_tokens(
    decodes: Sequence[DecodeRow], prefills: Sequence[PrefillSlice], drafts: Drafts | None
) -> mx.array:
    """[T] token ids: bonus and drafts of every decode row, then the prompt slices."""
    host: list[int] = []
    at: list[npt.NDArray[np.int32]] = []
    for row, d in enumerate(decodes):
        host += [d.token, *[0] * d.depth]
        if drafts is not None:
            at += [np.array([-1], np.int32), drafts.at[row, : d.depth]]
    for p in prefills:
        host += p.tokens
    known = np.array(host, np.int32)
    if drafts is None:
        return mx.array(known)
    drafted = np.concatenate(at)
    index = np.arange(known.size, dtype=np.int32)
    index[: drafted.size] = np.where(drafted < 0, index[: drafted.size], known.size + drafted)
    return mx.concatenate([mx.array(known), drafts.tokens])[mx.array(index)]

"""Log-probabilities of a prompt's own tokens, slice by slice, with the step's one sync.

- Logits of SCORED_ROWS rows exist at once, whatever a slice is long: each few rows wait for those
  before them to be reduced to what is reported, in the graph itself.
- They are the target's own, as those of replies are (sampling/logprobs).
- A step in which nobody asks builds the same graph as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from sapwood.cache.arrays.batch import Batch
from sapwood.model.sampling.logprobs import ScoredPlaces, score_places
from sapwood.scheduler.plan import PrefillSlice
from sapwood.scheduler.result import TokenLogprobs
from sapwood.scheduler.sampling import SCORED_ROWS


@dataclass(frozen=True, slots=True)
class PromptScores:
    """Of each slice's tokens that are scored, slices by their places in the plan."""

    slices: dict[int, list[ScoredPlaces]]

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        """What has to be evaluated before `read`."""
        parts = [part for parts in self.slices.values() for part in parts]
        return tuple(array for part in parts for array in part.arrays)

    def read(self, index: int, alternatives: int) -> tuple[TokenLogprobs, ...]:
        """Of slice `index` of the plan."""
        parts = self.slices.get(index, ())
        return tuple(each for part in parts for each in part.read(alternatives))


def drawing_rows(hidden: mx.array, batch: Batch) -> mx.array:
    """The rows that draw, of a forward's hidden rows [kept rows, hidden]."""
    if not any(span.scored for span in batch.prefills):
        return hidden
    ends = [
        batch.queries_of(index, trimmed=True)[1] - 1
        for index, span in enumerate(batch.prefills)
        if span.draws
    ]
    rows = [*range(batch.decode_tokens), *ends]
    return hidden[mx.array(rows, mx.int32)] if rows else hidden[:0]


def score_prompts(
    logits: Callable[[mx.array], mx.array],
    hidden: mx.array,
    batch: Batch,
    prefills: Sequence[PrefillSlice],
    asked: Sequence[int],
) -> PromptScores | None:
    """Scores of all slices that want some, None where none does.

    logits: of hidden rows [n, hidden]. asked: alternatives that each slice's slot wants.
    """
    found: dict[int, list[ScoredPlaces]] = {}
    before: ScoredPlaces | None = None
    for index, piece in enumerate(prefills):
        first, _ = batch.queries_of(index, trimmed=True)
        for start in range(0, len(piece.scored), SCORED_ROWS):
            tokens = piece.scored[start : start + SCORED_ROWS]
            rows = hidden[first + start : first + start + len(tokens)]
            if before is not None:
                rows = mx.depends(rows, list(before.arrays))
            known = mx.array(np.array(tokens, np.int32))
            before = score_places(logits(rows), known, asked[index])
            found.setdefault(index, []).append(before)
    return PromptScores(found) if found else None

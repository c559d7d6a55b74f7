"""Log probabilities to report: of emitted tokens and of the best alternatives. Lazy until read.

- They are the target's own: the log-softmax of its logits at the place, before bias, penalties,
  temperature and filters, with speculation as without.
- Computed only for rows that ask, and read with the step's tokens in its one sync.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from sapwood.model.sampling.distribution import DrawRows, log_total, ranked, take_rows
from sapwood.scheduler.result import TokenLogprobs


@dataclass(frozen=True, slots=True)
class ScoredPlaces:
    """Of n places: chosen [n]; best and ids [n, k], best first. Log-probabilities, float32."""

    chosen: mx.array
    best: mx.array
    ids: mx.array

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        """What has to be evaluated before `read`."""
        return self.chosen, self.best, self.ids

    def read(self, alternatives: int) -> list[TokenLogprobs]:
        """Each place with so many alternatives, at most k."""
        chosen, best, ids = (np.array(array).tolist() for array in self.arrays)
        return [
            TokenLogprobs(logprob, tuple(zip(row_ids, row, strict=True))[:alternatives])
            for logprob, row_ids, row in zip(chosen, ids, best, strict=True)
        ]


def score_places(logits: mx.array, tokens: mx.array, k: int) -> ScoredPlaces:
    """Of logits [n, V] and the token of each place [n], with the k most probable ones."""
    part = logits.astype(mx.float32)
    total = log_total(part)
    best, ids = ranked(part, k)
    chosen = mx.take_along_axis(part, tokens[:, None], axis=-1) - total
    return ScoredPlaces(chosen[:, 0], best - total, ids)


@dataclass(frozen=True, slots=True)
class LogprobsReport:
    """owners (host) [n]: whose each place is. asked (host) [B]: alternatives for each row."""

    owners: np.ndarray
    asked: tuple[int, ...]
    places: ScoredPlaces

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        """What has to be evaluated before `read`."""
        return self.places.arrays

    def read(self) -> dict[int, list[TokenLogprobs]]:
        """Row -> its places in order, those past what it committed included."""
        rows: dict[int, list[TokenLogprobs]] = {}
        told = self.places.read(max(self.asked))
        for row, place in zip(self.owners.tolist(), told, strict=True):
            kept = place.alternatives[: self.asked[row]]
            rows.setdefault(row, []).append(TokenLogprobs(place.logprob, kept))
        return rows


def logprobs_report(
    logits: mx.array, rows: DrawRows, drawn: mx.array, asked: tuple[int, ...]
) -> LogprobsReport | None:
    """The report on a step: logits [N, V] and drawn [B, K + 2] are what verify takes and gives.

    asked: for each row the alternatives that it wants, 0 for none. None: nobody asks.
    """
    flat = np.flatnonzero(np.array(asked)[rows.owners])
    if not flat.size:
        return None
    owners = rows.owners[flat]
    tokens = drawn[mx.array(owners), mx.array(rows.offsets[flat])]
    places = score_places(take_rows(logits, flat), tokens, max(asked))
    return LogprobsReport(owners, asked, places)

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
class LogprobsReport:
    """Of n places: owners (host) [n], their rows; chosen [n]; best and ids [n, k], best first.

    asked (host) [B]: how many alternatives each row wants, at most k.
    """

    owners: np.ndarray
    asked: tuple[int, ...]
    chosen: mx.array
    best: mx.array
    ids: mx.array

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        """What has to be evaluated before `read`."""
        return self.chosen, self.best, self.ids

    def read(self) -> dict[int, list[TokenLogprobs]]:
        """Row -> its places in order, those past what it committed included."""
        chosen, best, ids = (np.array(array).tolist() for array in self.arrays)
        rows: dict[int, list[TokenLogprobs]] = {}
        for place, row in enumerate(self.owners.tolist()):
            alternatives = zip(ids[place], best[place], strict=True)
            kept = tuple(alternatives)[: self.asked[row]]
            rows.setdefault(row, []).append(TokenLogprobs(chosen[place], kept))
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
    part = take_rows(logits, flat).astype(mx.float32)
    tokens = drawn[mx.array(owners), mx.array(rows.offsets[flat])]
    total = log_total(part)
    best, ids = ranked(part, max(asked))
    chosen = mx.take_along_axis(part, tokens[:, None], axis=-1) - total
    return LogprobsReport(owners, asked, chosen[:, 0], best - total, ids)

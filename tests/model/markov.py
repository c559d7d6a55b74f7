"""A toy target whose next token depends on the last one only, and plain references for its laws.

- `filtered_probs` states the filters of api.md in NumPy, sharing no line with the product.
- `generate` runs the draft-and-verify loop over it for many rows at once, as the runner would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np

from model.sampling import DraftLaw, DraftLogits, DrawRows, draft
from model.verify import verify
from scheduler.plan import Sampling

# (rows, their last tokens [n], rows drafting, position) -> their drafts [n] and the law
Drafter = Callable[[DrawRows, mx.array, Sequence[int], int], tuple[mx.array, DraftLaw | None]]


def filtered_probs(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The law of one row of logits [V], float64; ties go to the lower id."""
    logits = logits.astype(np.float64)
    order = np.lexsort((np.arange(len(logits)), -logits))
    scaled = (logits - logits.max()) / sampling.temperature
    probs = np.exp(scaled)
    if sampling.top_k:
        probs[order[sampling.top_k :]] = 0
    probs /= probs.sum()
    if sampling.top_p < 1:
        before = np.cumsum(probs[order]) - probs[order]
        probs[order[before >= sampling.top_p]] = 0
    probs[probs < sampling.min_p * probs.max()] = 0
    return probs / probs.sum()


def table_drafter(table: np.ndarray, ids: np.ndarray | None = None) -> Drafter:
    """Proposes by our own `draft` from logits table [V, S], for token ids [S] or all."""
    logits = mx.array(table.astype(np.float32))

    def propose(
        rows: DrawRows, last: mx.array, subset: Sequence[int], j: int
    ) -> tuple[mx.array, DraftLaw | None]:
        chosen = None if ids is None else mx.array(np.tile(ids, (len(subset), 1)))
        return draft(DraftLogits(logits[last], chosen), rows, subset, j)

    return propose


def point_drafter(successors: np.ndarray) -> Drafter:
    """Always proposes successors[last]: a point mass, and not drawn from any sampler."""

    def propose(
        rows: DrawRows, last: mx.array, subset: Sequence[int], j: int
    ) -> tuple[mx.array, DraftLaw | None]:
        tokens = mx.array(successors.astype(np.int32))[last]
        return tokens, DraftLaw(tuple(subset), tokens[:, None], mx.zeros((len(subset), 1)))

    return propose


def propose_all(
    rows: DrawRows, last: np.ndarray, drafter: Drafter
) -> tuple[mx.array | None, list[DraftLaw | None]]:
    """Draft to every row's own depth: drafts [B, K] (-1 past a depth), and the laws."""
    if not rows.depth_max:
        return None, []
    drafts = np.full((len(rows.depth), rows.depth_max), -1, np.int32)
    laws = []
    for j in range(rows.depth_max):
        subset = rows.drafting(j)
        at = list(subset)
        newest = last[at] if j == 0 else drafts[at, j - 1]
        tokens, law = drafter(rows, mx.array(newest), subset, j)
        drafts[at, j] = np.array(tokens)
        laws.append(law)
    return mx.array(drafts), laws


def target_logits(
    table: np.ndarray, rows: DrawRows, last: np.ndarray, drafts: mx.array | None
) -> mx.array:
    """[N, V]: the target's logits after each row's last token and its drafts."""
    inputs = last[:, None]
    if drafts is not None:
        inputs = np.concatenate([inputs, np.array(drafts)], axis=1)
    return mx.array(table.astype(np.float32))[mx.array(inputs[rows.owners, rows.offsets])]


def generate(
    table: np.ndarray,
    samplings: Sequence[Sampling],
    depth: Callable[[int, int], int],
    drafter: Drafter | None,
    count: int,
    first: int | Sequence[int] = 0,
) -> tuple[np.ndarray, float]:
    """The first `count` tokens of every row, [B, count], and accepted / drafted.

    depth(row, tokens so far) is a row's draft depth in its next round.
    """
    total = len(samplings)
    reply = np.zeros((total, count), np.int32)
    length, last = np.zeros(total, int), np.broadcast_to(np.int32(first), total).copy()
    accepted = drafted = 0
    while (live := np.flatnonzero(length < count)).size:
        rows = DrawRows(
            tuple(samplings[b] for b in live),
            tuple(depth(int(b), int(length[b])) if drafter else 0 for b in live),
            tuple(length[live].tolist()),
        )
        drafts, laws = (None, []) if drafter is None else propose_all(rows, last[live], drafter)
        logits = target_logits(table, rows, last[live], drafts)
        result = np.array(verify(logits, rows, drafts, laws))
        kept = result[:, -1]
        assert ((kept >= 0) & (kept <= np.array(rows.depth))).all()
        for column in range(result.shape[1] - 1):
            at = (column <= kept) & (length[live] + column < count)
            reply[live[at], length[live[at]] + column] = result[at, column]
        last[live] = result[np.arange(len(live)), kept]
        length[live] += kept + 1
        accepted, drafted = accepted + kept.sum(), drafted + sum(rows.depth)
    return reply, accepted / max(drafted, 1)

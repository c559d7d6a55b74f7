"""Accept or reject drafts and draw the next token of every row, whatever its sampler. Lazy.

- Lossless for any drafter: an emitted token is a draw from the target's distribution at its place,
  given the tokens before it, which bias and penalties look at too; greedy tokens are its argmax.
- Greedy and seeded rows: the target's token at an index is argmax(log p + noise of that index),
  and a draft is accepted exactly when it equals it. Depth, drafter and company cannot change what
  is emitted (Daliri et al., "Coupling without communication and drafter-invariant speculative
  decoding", 2024).
- Unseeded rows: exact rejection sampling. Accept with min(1, p / q); on the first rejection draw
  from max(p - q, 0) renormalised; past a full run from p (Leviathan et al., 2023).
- Forced drafts, which nobody drew: as of seeded rows, with the row's own noise. That is rejection
  sampling of a point mass, p(draft) being the chance that the target's own draw is the draft.
- Constrained rows: the target's logits are masked at every place, the drafter's are not. A draft
  that its mask rules out has no mass under p, so both rules reject it there, and no place behind
  it counts, whatever its mask says.
- Flat rows: row b's logits are [starts[b], starts[b] + depth + 1), one for each input token.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from sapwood.model.sampling.distribution import (
    GREEDY,
    Distribution,
    DrawRows,
    Filters,
    best_tokens,
    distribution_of,
    join_rows,
    split_rows,
    take_rows,
)
from sapwood.model.sampling.masking import masked
from sapwood.model.sampling.noise import NoiseStream
from sapwood.model.sampling.proposals import DraftDistribution


def verify(
    logits: mx.array,
    rows: DrawRows,
    drafts: mx.array | None = None,
    drawn_from: Sequence[DraftDistribution | None] = (),
    masks: mx.array | None = None,
) -> mx.array:
    """What each row commits: int32 [B, K + 2], K = the deepest draft of the step.

    logits: [N, V], N = sum(depth + 1): flat row i of a row predicts the token after its i-th input.
    drafts: int32 [B, K], anything beyond a row's own depth; may be None where K is 0.
    drawn_from[j] covers every unseeded row that drafted position j, but where the draft is forced:
    what its draft was drawn from.
    masks: uint8 [places of constrained rows, bytes], as `masked` takes them.

    Columns [0, n]: the accepted drafts, then the newly drawn token; after them anything.
    The last column: n, the number of accepted drafts, 0 <= n <= depth.
    """
    assert logits.shape[0] == len(rows.owners), (logits.shape, len(rows.owners))
    depth_max = rows.depth_max
    proposed = None
    if depth_max:
        assert drafts is not None, "a depth without drafts"
        assert drafts.shape == (len(rows.depth), depth_max), drafts.shape
        proposed = _flat_drafts(drafts, rows)
    parts = []
    kinds = 2 * rows.reaches + rows.adjusted
    if rows.constrained:
        kinds = 2 * kinds + rows.held
    members = split_rows(kinds[rows.owners])
    for flat in members:
        part, owner = take_rows(logits, flat), rows.owners[flat[0]]
        if rows.adjusted[owner]:
            part = _adjusted(part, rows, flat, drafts)
        if rows.constrained and rows.held[owner]:
            assert masks is not None, "a constrained row without masks"
            part = masked(part, take_rows(masks, rows.mask_places[flat]))
        continued = None if proposed is None else take_rows(proposed, flat)
        parts.append(_judge(part, int(rows.reaches[owner]), rows, flat, continued, drawn_from))
    tokens = join_rows([drawn for drawn, _ in parts], members)
    if drafts is None or not depth_max:
        return mx.stack([tokens, mx.zeros_like(tokens)], axis=1)
    accepted = join_rows([agreed for _, agreed in parts if agreed is not None], members)
    return _committed(tokens, accepted, drafts, rows)


def _adjusted(
    logits: mx.array, rows: DrawRows, flat: np.ndarray, drafts: mx.array | None
) -> mx.array:
    """Logits [n, V] of the flat rows after bias and penalties, each with the drafts before it."""
    owners, offsets = rows.owners[flat], rows.offsets[flat]
    before = None
    if offsets.any():
        assert drafts is not None
        past = np.arange(offsets.max()) < offsets[:, None]
        before = mx.where(mx.array(past), drafts[mx.array(owners), : past.shape[1]], -1)
    return rows.penalties.everywhere(logits, owners, before)


def _flat_drafts(drafts: mx.array, rows: DrawRows) -> mx.array:
    """[N]: the draft that follows each flat row's input; anything at a row's last place."""
    depth_max = rows.depth_max
    places = rows.owners * depth_max + np.minimum(rows.offsets, depth_max - 1)
    return drafts.reshape(-1)[mx.array(places)]


def _judge(
    logits: mx.array,
    reach: int,
    rows: DrawRows,
    flat: np.ndarray,
    proposed: mx.array | None,
    drawn_from: Sequence[DraftDistribution | None],
) -> tuple[mx.array, mx.array | None]:
    """For the flat rows of one reach: the token where the draft fails, and whether it holds."""
    if reach == GREEDY:
        tokens = best_tokens(logits)
        return tokens, None if proposed is None else tokens == proposed
    owners, offsets = rows.owners[flat], rows.offsets[flat]
    target = distribution_of(logits, Filters.of(rows.table[owners]), reach)
    scores, held = target.log_probs, None
    contested = _contested(rows)[flat]
    if contested.any():
        assert proposed is not None
        drafted = _drafted_probs(target, drawn_from, rows, flat, contested)
        held = _holds(target, drafted, proposed, rows.coins(owners, offsets))
        residual = _log_residual(target, drafted)
        scores = mx.where(mx.array(contested)[:, None], residual, scores)
    tokens = best_tokens(
        scores + rows.gumbel(owners, offsets, NoiseStream.RESIDUAL, target.support),
        target.ids,
    )
    if proposed is None:
        return tokens, None
    agreed = tokens == proposed
    return tokens, agreed if held is None else mx.where(mx.array(contested), held, agreed)


def _contested(rows: DrawRows) -> np.ndarray:
    """[N] bool: the places whose draft was drawn from a distribution that it is judged by."""
    depths = np.array(rows.depth, np.int32)
    forced = np.array(rows.forced or (0,) * len(depths), np.int32)
    drawn = (forced[rows.owners] <= rows.offsets) & (rows.offsets < depths[rows.owners])
    contested: np.ndarray = drawn & ~rows.seeded[rows.owners]
    return contested


def _drafted_probs(
    target: Distribution,
    drawn_from: Sequence[DraftDistribution | None],
    rows: DrawRows,
    flat: np.ndarray,
    contested: np.ndarray,
) -> mx.array:
    """q over the support of p, [n, C]; anything in rows that are not contested."""
    at = _drafted_places(drawn_from, rows)[rows.owners[flat], rows.offsets[flat]]
    assert (at[contested] >= 0).all(), "an unseeded row drafted without keeping its distribution"
    chosen = mx.array(np.maximum(at, 0))
    kept = [draft for draft in drawn_from if draft is not None]
    ids = mx.concatenate([draft.ids for draft in kept])[chosen]
    probs = mx.exp(mx.concatenate([draft.log_probs for draft in kept])[chosen])
    if target.ids is None:
        return mx.put_along_axis(mx.zeros_like(target.log_probs), ids, probs, axis=-1)
    return mx.where(target.ids[:, :, None] == ids[:, None, :], probs[:, None, :], 0).sum(axis=-1)


def _drafted_places(drawn_from: Sequence[DraftDistribution | None], rows: DrawRows) -> np.ndarray:
    """[B, K + 1]: where what a row's draft was drawn from lies among all of these; else -1."""
    places = np.full((len(rows.depth), rows.depth_max + 1), -1)
    count = 0
    for j, draft in enumerate(drawn_from):
        if draft is not None:
            end = count + len(draft.rows)
            places[list(draft.rows), j] = np.arange(count, end)
            count = end
    return places


def _holds(
    target: Distribution, drafted: mx.array, proposed: mx.array, coins: mx.array
) -> mx.array:
    """[n] bool: accept with min(1, p / q). A draft without mass under p is never accepted."""
    below = coins[:, None] * drafted < mx.exp(target.log_probs)
    return mx.any(below & (target.support == proposed[:, None]), axis=-1)


def _log_residual(target: Distribution, drafted: mx.array) -> mx.array:
    """log max(p - q, 0), unnormalised; log p where nothing is left of it.

    Nothing is left only where p equals q to rounding, and then a rejection has no probability.
    """
    residual = mx.maximum(mx.exp(target.log_probs) - drafted, 0)
    empty = residual.max(axis=-1, keepdims=True) == 0
    return mx.where(empty, target.log_probs, mx.log(residual))


def _committed(tokens: mx.array, accepted: mx.array, drafts: mx.array, rows: DrawRows) -> mx.array:
    """Cut every row's drafts at its first rejection and put its own token there."""
    depths = np.asarray(rows.depth)[:, None]
    columns = np.arange(rows.depth_max + 1)
    # Past a row's depth its last place is repeated: in range, and never read.
    padded = mx.array(rows.starts[:, None] + np.minimum(columns, depths))
    run = accepted[padded[:, :-1]] & mx.array(columns[:-1] < depths)
    count = mx.cumprod(run.astype(mx.int32), axis=1).sum(axis=1, keepdims=True)
    drawn = tokens[padded]
    head = mx.where(mx.array(columns[:-1]) < count, drafts, drawn[:, :-1])
    return mx.concatenate([head, drawn[:, -1:], count], axis=1).astype(mx.int32)

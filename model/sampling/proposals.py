"""What a drafter proposes, and what it was drawn from. Lazy: nothing here waits for data.

- That is the row's own sampler over the drafter's best tokens, its bias and penalties applied with
  the drafts so far as history. Any distribution is lossless as long as it is the one drawn from.
- A token that would end a reply too early is not drafted: the target would never have it.
- Seeded rows use the noise that the target will use at that index, so both draw the same token
  wherever their distributions agree enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from sapwood.model.sampling.distribution import (
    GREEDY,
    DrawRows,
    Filters,
    best_tokens,
    filtered,
    join_rows,
    ranked,
    split_rows,
    take_rows,
)
from sapwood.model.sampling.noise import NoiseStream

DRAFT_CANDIDATES = 64


@dataclass(frozen=True, slots=True)
class DraftLogits:
    """What a drafter says of n rows: logits [n, S] for tokens ids [n, S] (distinct in a row).

    ids None: S is the vocabulary in id order.
    """

    logits: mx.array
    ids: mx.array | None = None


@dataclass(frozen=True, slots=True)
class DraftDistribution:
    """What proposals at one draft position were drawn from, kept for their acceptance.

    rows: numbers in DrawRows, one for each row of ids int32 [n, C] and log_probs float32 [n, C].
    A deterministic proposal is the point mass: its own id, log probability 0.
    """

    rows: tuple[int, ...]
    ids: mx.array
    log_probs: mx.array


def draft(
    logits: DraftLogits,
    rows: DrawRows,
    subset: Sequence[int],
    j: int,
    before: Sequence[mx.array] = (),
) -> tuple[mx.array, DraftDistribution | None]:
    """Propose the token at draft position j (0-based) of the rows in `subset`.

    logits has one row for each of `subset`, in that order; so have the tokens, int32 [n]. `before`
    are the j positions proposed so far, each for the same rows and maybe for others after them.
    Greedy rows propose the argmax. The others draw from their own sampler applied to the drafter's
    best DRAFT_CANDIDATES tokens: seeded rows with the noise that the target will use at that index.
    The distribution is None where no row needs it: only unseeded rows do.
    """
    assert len(subset) == logits.logits.shape[0] > 0, (len(subset), logits.logits.shape)
    owners = np.asarray(subset)
    members = split_rows(2 * (rows.reaches[owners] == GREEDY) + rows.adjusted[owners])
    tokens, distributions = [], []
    for at in members:
        drawing, part = owners[at], take_rows(logits.logits, at)
        ids = None if logits.ids is None else take_rows(logits.ids, at)
        if rows.adjusted[drawing[0]]:
            assert len(before) == j, f"{len(before)} drafts before position {j}"
            said = [take_rows(earlier[: len(subset)], at) for earlier in before]
            part = _adjusted(part, ids, rows, drawing, said)
        if rows.reaches[drawing[0]] == GREEDY:
            tokens.append(best_tokens(part, ids))
            continue
        ids, log_probs = _proposals(part, ids, Filters.of(rows.table[drawing]))
        tokens.append(best_tokens(log_probs + rows.gumbel(drawing, j, NoiseStream.DRAFT, ids), ids))
        if not rows.seeded[drawing].all():
            distributions.append(DraftDistribution(tuple(drawing.tolist()), ids, log_probs))
    return join_rows(tokens, members), _join_distributions(distributions)


def without_ends(
    drafted: DraftLogits, rows: DrawRows, subset: Sequence[int], j: int
) -> DraftLogits:
    """A drafter's logits at position j of the rows in `subset`, -inf for what ends too early.

    A row that scores nothing else keeps its scores: the target will not have its draft.
    """
    found = [sorted(rows.ruled_out(row, j)) for row in subset]
    if not any(found):
        return drafted
    if drafted.ids is None:
        places = [(n, id) for n, ids in enumerate(found) for id in ids]
        at, ids = (mx.array(part) for part in zip(*places, strict=True))
        return DraftLogits(drafted.logits.at[at, ids].add(-mx.inf))
    width = max(map(len, found))
    table = mx.array([ids + [-1] * (width - len(ids)) for ids in found], mx.int32)
    banned = mx.any(drafted.ids[:, :, None] == table[:, None, :], axis=-1)
    banned = banned & mx.any(~banned, axis=-1, keepdims=True)
    return DraftLogits(mx.where(banned, -mx.inf, drafted.logits), drafted.ids)


def _adjusted(
    logits: mx.array,
    ids: mx.array | None,
    rows: DrawRows,
    owners: np.ndarray,
    said: list[mx.array],
) -> mx.array:
    """A drafter's logits [n, S] after bias and penalties; said: the drafts before, each [n]."""
    drafts = mx.stack(said, axis=1) if said else None
    if ids is None:
        return rows.penalties.everywhere(logits, owners, drafts)
    return rows.penalties.among(logits, ids, owners, drafts)


def _join_distributions(distributions: Sequence[DraftDistribution]) -> DraftDistribution | None:
    """One distribution of all rows; the proposals of one position are of one width."""
    if len(distributions) < 2:
        return distributions[0] if distributions else None
    return DraftDistribution(
        tuple(row for distribution in distributions for row in distribution.rows),
        mx.concatenate([distribution.ids for distribution in distributions]),
        mx.concatenate([distribution.log_probs for distribution in distributions]),
    )


def _proposals(
    logits: mx.array, ids: mx.array | None, filters: Filters
) -> tuple[mx.array, mx.array]:
    """Ids and log-probabilities [n, C] of a drafter's filtered best: C <= DRAFT_CANDIDATES."""
    values, places = ranked(logits.astype(mx.float32), DRAFT_CANDIDATES)
    if ids is not None:
        places = mx.take_along_axis(ids, places, axis=-1).astype(mx.int32)
    return places, filtered(values, filters)

"""A toy target whose next token depends on the last one only, with plain references.

- `adjusted_logits` and `filtered_probs` state bias, penalties and filters of api.md in NumPy,
  sharing no line with the product.
- `generate` runs the draft-and-verify loop over it for many rows at once, as the runner would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np
from scipy import stats

from sapwood.model.sampling.acceptance import verify
from sapwood.model.sampling.distribution import DrawRows
from sapwood.model.sampling.penalties import Tally
from sapwood.model.sampling.proposals import DraftDistribution, DraftLogits, draft
from sapwood.scheduler.sampling import Sampling

# (rows, their tokens so far, each [n]: the last and its drafts, rows drafting) -> their next drafts
# [n] and the distribution
Drafter = Callable[
    [DrawRows, Sequence[mx.array], Sequence[int]], tuple[mx.array, DraftDistribution | None]
]


def drafting(rows: DrawRows, j: int) -> tuple[int, ...]:
    """The rows that draft a token at position j (0-based): those with depth > j."""
    return tuple(b for b, depth in enumerate(rows.depth) if depth > j)


def adjusted_logits(
    logits: np.ndarray, sampling: Sampling, prompt: Sequence[int], reply: Sequence[int]
) -> np.ndarray:
    """One row of logits [V] after bias and penalties, float64, given what was said so far."""
    scores = logits.astype(np.float64)
    for token, bias in sampling.logit_bias:
        scores[token] += bias
    penalty = sampling.repetition_penalty
    for token in {*prompt, *reply}:
        scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
    for token in set(reply):
        scores[token] -= sampling.presence_penalty
    for token in reply:
        scores[token] -= sampling.frequency_penalty
    return scores


def filtered_probs(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The distribution of one row of logits [V], float64; ties go to the lower id."""
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
    kept: np.ndarray = probs / probs.sum()
    return kept


def table_drafter(table: np.ndarray, ids: np.ndarray | None = None) -> Drafter:
    """Proposes by our own `draft` from logits table [V, S], for token ids [S] or all."""
    logits = mx.array(table.astype(np.float32))

    def propose(
        rows: DrawRows, said: Sequence[mx.array], subset: Sequence[int]
    ) -> tuple[mx.array, DraftDistribution | None]:
        chosen = None if ids is None else mx.array(np.tile(ids, (len(subset), 1)))
        proposed = DraftLogits(logits[said[-1]], chosen)
        return draft(proposed, rows, subset, len(said) - 1, said[1:])

    return propose


def point_drafter(successors: np.ndarray) -> Drafter:
    """Always proposes successors[last]: a point mass, and not drawn from any sampler."""

    def propose(
        rows: DrawRows, said: Sequence[mx.array], subset: Sequence[int]
    ) -> tuple[mx.array, DraftDistribution | None]:
        tokens = mx.array(successors.astype(np.int32))[said[-1]]
        return tokens, DraftDistribution(tuple(subset), tokens[:, None], mx.zeros((len(subset), 1)))

    return propose


def forced_then(count: int, successors: np.ndarray, drafter: Drafter) -> Drafter:
    """For the first `count` drafts successors[last], drawn from nothing; then as `drafter` does."""
    known = mx.array(successors.astype(np.int32))

    def propose(
        rows: DrawRows, said: Sequence[mx.array], subset: Sequence[int]
    ) -> tuple[mx.array, DraftDistribution | None]:
        return (known[said[-1]], None) if len(said) <= count else drafter(rows, said, subset)

    return propose


def propose_all(
    rows: DrawRows, last: np.ndarray, drafter: Drafter
) -> tuple[mx.array | None, list[DraftDistribution | None]]:
    """Draft to every row's own depth: drafts [B, K] (-1 past a depth), and the distributions."""
    if not rows.depth_max:
        return None, []
    drafts = np.full((len(rows.depth), rows.depth_max), -1, np.int32)
    distributions = []
    for j in range(rows.depth_max):
        subset = drafting(rows, j)
        at = list(subset)
        said = [mx.array(tokens) for tokens in (last[at], *drafts[at, :j].T)]
        tokens, distribution = drafter(rows, said, subset)
        drafts[at, j] = np.array(tokens)
        distributions.append(distribution)
    return mx.array(drafts), distributions


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
    allowed: np.ndarray | None = None,
    forced: int = 0,
) -> tuple[np.ndarray, float]:
    """The first `count` tokens of every row, [B, count], and accepted / drafted.

    depth(row, tokens so far) is a row's draft depth in its next round. `first` is the prompt.
    allowed: bool [V, V], the tokens that may follow each, as a constraint's masks say it. forced:
    how many of the first drafts of a round nobody drew.
    """
    total = len(samplings)
    prompts = np.broadcast_to(first, total).tolist()
    tallies = [
        Tally(s, [prompt], len(table)) if s.adjusted else None
        for s, prompt in zip(samplings, prompts, strict=True)
    ]
    reply = np.zeros((total, count), np.int32)
    length, last = np.zeros(total, int), np.broadcast_to(np.array(first, np.int32), total).copy()
    accepted = drafted = 0
    while (live := np.flatnonzero(length < count)).size:
        rows = DrawRows(
            tuple(samplings[int(b)] for b in live),
            tuple(depth(int(b), int(length[b])) if drafter else 0 for b in live),
            tuple(length[live].tolist()),
            tuple(tallies[b] for b in live) if any(tallies) else (),
            () if allowed is None else (True,) * len(live),
            forced=(forced,) * len(live) if forced else (),
        )
        drafts, distributions = (
            (None, []) if drafter is None else propose_all(rows, last[live], drafter)
        )
        logits = target_logits(table, rows, last[live], drafts)
        masks = None if allowed is None else path_masks(allowed, rows, last[live], drafts)
        result = np.array(verify(logits, rows, drafts, distributions, masks))
        kept = result[:, -1]
        assert ((kept >= 0) & (kept <= np.array(rows.depth))).all()
        for column in range(result.shape[1] - 1):
            at = (column <= kept) & (length[live] + column < count)
            reply[live[at], length[live[at]] + column] = result[at, column]
        for b, tokens, n in zip(live, result.tolist(), kept, strict=True):
            if (tally := tallies[b]) is not None:
                tally.push(tokens[: n + 1])
        last[live] = result[np.arange(len(live)), kept]
        length[live] += kept + 1
        accepted, drafted = accepted + kept.sum(), drafted + sum(rows.depth)
    return reply, accepted / max(drafted, 1)


def path_masks(
    allowed: np.ndarray, rows: DrawRows, last: np.ndarray, drafts: mx.array | None
) -> mx.array:
    """The masks of each row's path; behind a draft that may not be, everything."""
    inputs = last[:, None]
    if drafts is not None:
        inputs = np.concatenate([inputs, np.maximum(np.array(drafts), 0)], axis=1)
    follows = allowed[inputs[:, :-1], inputs[:, 1:]]
    right = np.cumprod(np.pad(follows, ((0, 0), (1, 0)), constant_values=True), axis=1) > 0
    places = rows.owners, rows.offsets
    kept = allowed[inputs[places]] | ~right[places][:, None]
    return mx.array(np.packbits(kept, axis=1, bitorder="little"))


def joint_distribution(table: np.ndarray, sampling: Sampling, first: int) -> np.ndarray:
    """[V, V, V]: the probability of a reply's first three tokens after the prompt `first`."""
    width = len(table)

    def distribution(*reply: int) -> np.ndarray:
        newest = (first, *reply)[-1]
        return filtered_probs(adjusted_logits(table[newest], sampling, [first], reply), sampling)

    second = np.array([distribution(a) for a in range(width)])
    third = np.array([[distribution(a, b) for b in range(width)] for a in range(width)])
    joint: np.ndarray = distribution()[:, None, None] * second[:, :, None] * third
    return joint


def p_value(tokens: np.ndarray, joint: np.ndarray) -> float:
    """Chi-square of three tokens [n, 3] against their joint distribution; rare cells pooled."""
    expected = joint.ravel() * len(tokens)
    cells = np.ravel_multi_index(tuple(tokens.T), joint.shape)
    seen = np.bincount(cells, minlength=joint.size)
    if seen[expected == 0].any():
        return 0.0
    rare = expected < 5
    seen = np.append(seen[~rare], seen[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    filled = expected > 0
    return float(stats.chisquare(seen[filled], expected[filled], sum_check=False).pvalue)


def joint_p_value(
    table: np.ndarray,
    samplings: Sequence[Sampling],
    drafter: Drafter,
    depth: int,
    first: int,
    allowed: np.ndarray | None = None,
    forced: int = 0,
) -> float:
    """Replies of three tokens to requests that differ in their noise, against one distribution.

    Drawn in parts that fit a small machine's memory.
    """
    parts = [
        generate(
            table,
            samplings[at : at + 20_000],
            lambda row, length: depth,
            drafter,
            3,
            first,
            allowed,
            forced,
        )
        for at in range(0, len(samplings), 20_000)
    ]
    if allowed is not None:
        table = np.where(allowed, table, -np.inf)
    joint = joint_distribution(table, samplings[0], first)
    return p_value(np.concatenate([tokens for tokens, _ in parts]), joint)

"""Whatever the drafter, depth and company, the target's distribution comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from sapwood.model.sampling import acceptance as product
from sapwood.model.sampling.acceptance import verify
from sapwood.model.sampling.distribution import DrawRows, Filters, distribution_of
from sapwood.model.sampling.proposals import DraftDistribution, DraftLogits, draft
from sapwood.scheduler.sampling import Sampling
from tests.model.sampling import markov
from tests.model.sampling.markov import (
    Drafter,
    drafting,
    filtered_probs,
    generate,
    point_drafter,
    propose_all,
    table_drafter,
    target_logits,
)
from tests.quick import few_quick

VOCABULARY = 16
TABLE = np.random.default_rng(20).normal(0, 1.5, (VOCABULARY, VOCABULARY)).astype(np.float32)
GOOD = TABLE + np.random.default_rng(21).normal(0, 0.7, TABLE.shape).astype(np.float32)
FIRST = 3

#: Chains that a joint is counted over: a broken rule is seen with 20,000, a slight one later.
COUNTED = few_quick([20_000, 200_000], 20_000)

FILTERS = {
    "temperature": Sampling(0.8),
    "top_k": Sampling(1.2, top_k=5),
    "top_p": Sampling(1.0, top_p=0.8),
    "min_p": Sampling(1.0, min_p=0.15),
    "all": Sampling(1.4, top_k=9, top_p=0.9, min_p=0.03),
}
DRAFTERS: dict[str, Drafter] = {
    "perfect": table_drafter(TABLE),
    "good": table_drafter(GOOD),
    # Its mass lies where the target has least: under top_k and top_p the supports are disjoint.
    "disjoint": table_drafter(-8 * TABLE),
    # Never proposes an odd token, as an ordered head that scores some ids only.
    "zeros": table_drafter(2 * TABLE[:, ::2], np.arange(0, VOCABULARY, 2)),
    "best": point_drafter(TABLE.argmax(axis=1)),
    "worst": point_drafter(TABLE.argmin(axis=1)),
}


def requests(sampling: Sampling, count: int, *, seeded: bool, salt: int = 0) -> list[Sampling]:
    """`count` requests with one sampler and neighbouring noise keys."""
    return [replace(sampling, seeded=seeded, noise_key=salt * 2**32 + key) for key in range(count)]


def joint_p_value(
    sampling: Sampling, drafter: str, depth: int, *, seeded: bool, rows: int
) -> float:
    drawn = requests(sampling, rows, seeded=seeded)
    return markov.joint_p_value(TABLE, drawn, DRAFTERS[drafter], depth, FIRST)


@pytest.mark.parametrize("rows", COUNTED)
@pytest.mark.parametrize(
    ("filters", "drafter", "depth"),
    [
        ("top_k", "disjoint", 1),
        ("top_p", "zeros", 2),
        ("all", "good", 3),
        pytest.param("temperature", "good", 4, marks=pytest.mark.long),
        pytest.param("top_p", "perfect", 4, marks=pytest.mark.long),
        pytest.param("min_p", "best", 2, marks=pytest.mark.long),
        pytest.param("min_p", "worst", 1, marks=pytest.mark.long),
    ],
)
def test_s2_rejection_sampling_is_lossless(
    filters: str, drafter: str, depth: int, rows: int
) -> None:
    """S2, unseeded rows: the joint of the first three tokens is the target's."""
    assert joint_p_value(FILTERS[filters], drafter, depth, seeded=False, rows=rows) > 1e-4


@pytest.mark.parametrize("rows", COUNTED)
@pytest.mark.parametrize(
    ("filters", "drafter", "depth"),
    [
        ("min_p", "disjoint", 1),
        ("all", "good", 4),
        pytest.param("temperature", "good", 2, marks=pytest.mark.long),
        pytest.param("top_k", "perfect", 3, marks=pytest.mark.long),
        pytest.param("top_p", "best", 1, marks=pytest.mark.long),
    ],
)
def test_s2_shared_noise_is_lossless(filters: str, drafter: str, depth: int, rows: int) -> None:
    """S2, seeded rows: over the seeds, the joint of the first three tokens is the target's."""
    assert joint_p_value(FILTERS[filters], drafter, depth, seeded=True, rows=rows) > 1e-4


@pytest.mark.parametrize(
    ("step", "broken"),
    [
        ("_log_residual", lambda distribution, drafted: distribution.log_probs),
        (
            "_holds",
            lambda distribution, drafted, proposed, coins: mx.ones(proposed.shape, mx.bool_),
        ),
        (
            "_holds",
            lambda distribution, drafted, proposed, coins: mx.zeros(proposed.shape, mx.bool_),
        ),
    ],
    ids=["without residual", "accepts all", "accepts none"],
)
def test_s2_notices_a_broken_rule(
    monkeypatch: pytest.MonkeyPatch, step: str, broken: Callable[..., mx.array]
) -> None:
    """The inverse of S2: a verifier without one of its steps must fail the same test."""
    monkeypatch.setattr(product, step, broken)
    assert joint_p_value(FILTERS["temperature"], "good", 2, seeded=False, rows=20_000) < 1e-4


def depth_of(row: int, length: int) -> int:
    """Ragged, and changing every round."""
    return (row * 7 + length * 3) % 5


@pytest.mark.parametrize("drafter", list(DRAFTERS))
def test_s5_seeded_tokens_do_not_depend_on_depth_or_drafter(drafter: str) -> None:
    samplings = [
        s
        for salt, f in enumerate(FILTERS.values())
        for s in requests(f, 40, seeded=True, salt=salt)
    ]
    plain, _ = generate(TABLE, samplings, lambda row, length: 0, None, 9, FIRST)
    for depth in (lambda row, length: 1, lambda row, length: 4, depth_of):
        drafted, _ = generate(TABLE, samplings, depth, DRAFTERS[drafter], 9, FIRST)
        assert plain.tolist() == drafted.tolist()


def mixed_company() -> list[Sampling]:
    """Greedy, seeded and unseeded rows of every reach, interleaved."""
    kinds = [*FILTERS.values(), Sampling(1.0, top_k=200), Sampling()]
    return [
        Sampling(s.temperature, s.top_k, s.top_p, s.min_p, bool((i + j) % 2), 100 * i + j)
        for j in range(4)
        for i, s in enumerate(kinds)
    ]


def test_s5_company_changes_nobody() -> None:
    """Every kind of row together, ragged depths: each row gets what it gets alone.

    Holds for unseeded rows too, where the depths are the same: no row sees another's noise.
    """
    samplings = mixed_company()
    together, _ = generate(TABLE, samplings, depth_of, DRAFTERS["good"], 9, FIRST)
    for row, sampling in enumerate(samplings):

        def depth(_: int, length: int, row: int = row) -> int:
            return depth_of(row, length)

        alone, _ = generate(TABLE, [sampling], depth, DRAFTERS["good"], 9, FIRST)
        assert alone[0].tolist() == together[row].tolist()


@pytest.mark.parametrize("drafter", list(DRAFTERS))
def test_s1_greedy_is_the_argmax_at_any_depth(drafter: str) -> None:
    expected = [FIRST]
    for _ in range(12):
        expected.append(int(TABLE[expected[-1]].argmax()))
    for deepest in (0, 1, 2, 4):

        def depth(row: int, length: int, deepest: int = deepest) -> int:
            return max(deepest - row, 0)

        tokens, _ = generate(TABLE, [Sampling()] * 3, depth, DRAFTERS[drafter], 12, FIRST)
        assert [expected[1:]] * 3 == tokens.tolist()


def test_greedy_ties_go_to_the_lower_id() -> None:
    logits = mx.array([[0.0, 5, 5, 1], [7, 7, 7, 7], [0, 0, 0, 2]], mx.bfloat16)
    rows = DrawRows((Sampling(),), (2,), (0,))
    assert verify(logits, rows, mx.array([[1, 0]], mx.int32)).tolist() == [[1, 0, 3, 2]]
    rejected = np.array(verify(logits, rows, mx.array([[2, 0]], mx.int32)))[0]
    assert (rejected[0], rejected[-1]) == (1, 0)


@pytest.mark.parametrize("seeded", [False, True])
def test_better_drafters_are_accepted_more(seeded: bool) -> None:
    """Losslessness alone would be met by a verifier that accepts nothing."""
    rates = [
        generate(
            TABLE,
            requests(FILTERS["all"], 2000, seeded=seeded),
            lambda row, length: 3,
            DRAFTERS[name],
            6,
            FIRST,
        )[1]
        for name in ("worst", "good", "perfect")
    ]
    assert rates[0] < 0.05 < 0.3 < rates[1] < 0.9
    assert rates[2] > 0.999


@pytest.mark.parametrize("filters", list(FILTERS))
def test_acceptance_is_the_overlap_of_the_distributions(filters: str) -> None:
    """Exact rejection sampling accepts with probability sum(min(p, q)): no rule accepts more."""
    count = 20_000
    samplings = requests(FILTERS[filters], count, seeded=False, salt=9)
    rows = DrawRows(tuple(samplings), (1,) * count, (4,) * count)
    last = np.full(count, FIRST, np.int32)
    drafts, distributions = propose_all(rows, last, DRAFTERS["good"])
    kept = np.array(verify(target_logits(TABLE, rows, last, drafts), rows, drafts, distributions))[
        :, -1
    ]
    overlap = np.minimum(
        *(filtered_probs(table[FIRST], FILTERS[filters]) for table in (TABLE, GOOD))
    ).sum()
    assert abs(kept.mean() - overlap) < 5 * np.sqrt(overlap * (1 - overlap) / count)


def test_draft_without_mass_is_never_accepted() -> None:
    """Whatever the coin: the draft's own distribution may even call it certain."""
    count = 5000
    rows = DrawRows(
        tuple(requests(Sampling(1.0, top_k=2), count, seeded=False)), (1,) * count, (0,) * count
    )
    logits = mx.array(np.tile(np.array([[3, 2, 1, 0]], np.float32), (2 * count, 1)))
    drafts = mx.full((count, 1), 2, mx.int32)
    distribution = DraftDistribution(tuple(range(count)), drafts, mx.zeros((count, 1)))
    result = np.array(verify(logits, rows, drafts, [distribution]))
    assert not result[:, -1].any()
    assert {0, 1} == set(result[:, 0].tolist())


def test_vanished_residual_falls_back_to_the_target() -> None:
    """p equal to q to the last bit leaves nothing of p - q: then p, never an argmax of -inf."""
    rows = DrawRows((Sampling(1.0, top_k=3),), (0,), (0,))
    distribution = distribution_of(mx.array([[0.0, 1, 2, 3, 4]]), Filters.of(rows.table), 64)
    assert (
        distribution.log_probs.tolist()
        == product._log_residual(distribution, mx.exp(distribution.log_probs)).tolist()
    )


def test_garbage_beyond_a_depth_is_never_read() -> None:
    """S3: rows without drafts beside deep ones; the runner pads with anything."""
    rng = np.random.default_rng(6)
    samplings = tuple(mixed_company())
    depth = tuple(depth_of(row, 1) for row in range(len(samplings)))
    rows = DrawRows(samplings, depth, (5,) * len(samplings))
    last = rng.integers(0, VOCABULARY, len(samplings)).astype(np.int32)
    drafts, distributions = propose_all(rows, last, DRAFTERS["good"])
    logits = target_logits(TABLE, rows, last, drafts)
    outside = np.arange(rows.depth_max) >= np.array(depth)[:, None]
    results, bonus = [], np.zeros((len(samplings), 1), np.int32)
    # The last filler is what tempts most: the token that the row draws past its own drafts.
    for filler in (-1, 2**31 - 1, bonus):
        filled = mx.array(np.where(outside, filler, np.array(drafts)).astype(np.int32))
        result = np.array(verify(logits, rows, filled, distributions))
        kept = result[:, -1]
        assert (kept <= depth).all()
        bonus[:, 0] = result[np.arange(len(kept)), kept]
        results.append([row[: n + 1].tolist() for row, n in zip(result, kept, strict=True)])
    assert results[0] == results[1] == results[2]


def test_rows_that_draw_a_first_token_need_no_drafts() -> None:
    samplings = tuple(mixed_company())
    rows = DrawRows(samplings, (0,) * len(samplings), (0,) * len(samplings))
    logits = mx.array(TABLE[np.arange(len(samplings)) % VOCABULARY])
    result = np.array(verify(logits, rows))
    assert result.shape == (len(samplings), 2)
    assert not result[:, 1].any()
    # One drafting row beside them takes the other path, and changes no token.
    deep = DrawRows((*samplings, Sampling()), (*rows.depth, 3), (*rows.index, 0))
    more = mx.concatenate([logits, mx.array(TABLE[:4])])
    beside = np.array(verify(more, deep, mx.zeros((len(samplings) + 1, 3), mx.int32)))
    assert result[:, 0].tolist() == beside[:-1, 0].tolist()


def test_unseeded_draft_without_its_distribution_is_our_mistake() -> None:
    rows = DrawRows((Sampling(1.0, top_k=3),), (1,), (0,))
    with pytest.raises(AssertionError):
        verify(mx.zeros((2, 8)), rows, mx.zeros((1, 1), mx.int32), [None])


def test_nothing_waits_for_the_device() -> None:
    """One sync per round is the runner's: under a trace, reading a value raises."""
    samplings = tuple(mixed_company())
    rows = DrawRows(samplings, tuple(depth_of(r, 1) for r in range(len(samplings))), (0,) * 28)
    chosen = [drafting(rows, j) for j in range(rows.depth_max)]

    def step(logits: mx.array, table: mx.array) -> mx.array:
        proposals = [
            draft(DraftLogits(table[: len(subset)]), rows, subset, j)
            for j, subset in enumerate(chosen)
        ]
        padded = [mx.pad(tokens, (0, 28 - tokens.shape[0])) for tokens, _ in proposals]
        return verify(
            logits, rows, mx.stack(padded, axis=1), [distribution for _, distribution in proposals]
        )

    logits = mx.array(np.tile(TABLE, (8, 1))[: len(rows.owners)])
    table = mx.array(np.tile(TABLE, (2, 1))[:28])
    with pytest.raises(ValueError, match="eval"):
        mx.compile(lambda a: mx.array(a.sum().item()))(table)
    assert step(logits, table).shape == mx.compile(step)(logits, table).shape

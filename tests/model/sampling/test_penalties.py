"""Bias and penalties: against a plain reference, through both rules, with drafts as history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Never

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sapwood.model.sampling import acceptance as product
from sapwood.model.sampling import proposals
from sapwood.model.sampling.acceptance import verify
from sapwood.model.sampling.distribution import DrawRows
from sapwood.model.sampling.penalties import Penalties, Tally
from sapwood.model.sampling.proposals import DraftLogits, draft
from sapwood.scheduler.sampling import Sampling
from tests.model.sampling.markov import (
    Drafter,
    adjusted_logits,
    drafting,
    generate,
    joint_p_value,
    point_drafter,
    propose_all,
    table_drafter,
    target_logits,
)
from tests.quick import few_quick

VOCABULARY = 12
TABLE = np.random.default_rng(40).normal(0, 1.2, (VOCABULARY, VOCABULARY)).astype(np.float32)
# Likes what was just said, so that a history that is short of one token shows.
TABLE += 1.5 * np.eye(VOCABULARY, dtype=np.float32)
GOOD = TABLE + np.random.default_rng(41).normal(0, 0.6, TABLE.shape).astype(np.float32)
FIRST, DRAWS = 3, 10_000
BIAS = ((1, 1.5), (4, -100.0), (FIRST, 0.75))

ADJUSTED = {
    "repetition": Sampling(1.0, repetition_penalty=1.7),
    "presence": Sampling(0.9, top_k=9, presence_penalty=1.5),
    "frequency": Sampling(1.1, top_p=0.95, frequency_penalty=1.2),
    "bias": Sampling(1.0, min_p=0.02, logit_bias=BIAS),
    "all": Sampling(1.3, 10, 0.97, 0.01, False, 0, 1.3, -0.6, 0.9, BIAS),
}
DRAFTERS: dict[str, Drafter] = {
    "good": table_drafter(GOOD),
    # An ordered head that scores half of the ids.
    "half": table_drafter(GOOD[:, ::2], np.arange(0, VOCABULARY, 2)),
    "worst": point_drafter(TABLE.argmin(axis=1)),
}


def requests(sampling: Sampling, count: int, *, seeded: bool) -> list[Sampling]:
    return [replace(sampling, seeded=seeded, noise_key=key) for key in range(count)]


def test_penalties_by_hand() -> None:
    """CTRL divides what is above 0 and multiplies what is below; the prompt counts only there."""
    sampling = Sampling(0.0, 0, 1.0, 0.0, False, 0, 2.0, 0.5, 0.25, ((0, 3.0), (5, -1.0)))
    tally = Tally(sampling, [1, 2, 5], 7)
    tally.push((2, 3))
    tally.push((3,))
    scores = Penalties.of([tally]).everywhere(mx.array([[1.0, 4, -1, 2, 8, 0.5, 9]]), np.array([0]))
    # bias 4 | prompt 4/2 | both -1*2 - .5 - .25 | twice 2/2 - .5 - .5 | none | (0.5-1)*2 | none
    assert scores.tolist() == [[4.0, 2.0, -2.75, 0.0, 8.0, -1.0, 9.0]]


SAMPLINGS = st.builds(
    Sampling,
    repetition_penalty=st.sampled_from([1.0, 0.4, 1.3, 3.0]),
    presence_penalty=st.sampled_from([0.0, -2.0, 0.7]),
    frequency_penalty=st.sampled_from([0.0, -0.3, 2.0]),
    logit_bias=st.dictionaries(st.integers(0, 19), st.floats(-100, 100, width=32), max_size=4).map(
        lambda biases: tuple(sorted(biases.items()))
    ),
)
TOKENS = st.lists(st.integers(0, 19), max_size=6)


@settings(max_examples=150)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.tuples(SAMPLINGS, TOKENS, TOKENS, TOKENS), min_size=1, max_size=4),
)
def test_adjusted_logits_are_the_reference(
    seed: int, rows: list[tuple[Sampling, list[int], list[int], list[int]]]
) -> None:
    """Rows of any history together, each place with its own drafts before it, in any company."""
    logits = np.random.default_rng(seed).normal(0, 4, (len(rows), 20)).astype(np.float32)
    tallies = [Tally(sampling, prompt, 20) for sampling, prompt, _, _ in rows]
    for tally, (_, _, reply, _) in zip(tallies, rows, strict=True):
        tally.push(reply)
    drafts = np.full((len(rows), 6), -1, np.int32)
    for place, (*_, said) in enumerate(rows):
        drafts[place, : len(said)] = said
    penalties, owners = Penalties.of([None, *tallies]), np.arange(len(rows)) + 1
    scores = np.array(penalties.everywhere(mx.array(logits), owners, mx.array(drafts)))
    for place, (sampling, prompt, reply, said) in enumerate(rows):
        expected = adjusted_logits(logits[place], sampling, prompt, [*reply, *said])
        np.testing.assert_allclose(scores[place], expected, rtol=1e-5, atol=1e-4)
    # Of some ids alone, and with the drafts committed instead: the same to the last bit.
    ids = np.random.default_rng(seed).permuted(np.tile(np.arange(20), (len(rows), 1)), axis=1)
    some = penalties.among(
        mx.array(np.take_along_axis(logits, ids, 1)), mx.array(ids), owners, mx.array(drafts)
    )
    assert np.take_along_axis(scores, ids, 1).tolist() == some.tolist()
    for tally, (*_, said) in zip(tallies, rows, strict=True):
        tally.push(said)
    committed = Penalties.of([None, *tallies]).everywhere(mx.array(logits), owners)
    assert scores.tolist() == committed.tolist()


@pytest.mark.parametrize("penalty", [1e-45, 1e-30, 1e30, 3e38])
def test_extreme_penalties_stay_finite(penalty: float) -> None:
    tally = Tally(Sampling(repetition_penalty=penalty), [0, 1], 4)
    scores = Penalties.of([tally]).everywhere(mx.array([[30.0, -30, 29, -29]]), np.array([0]))
    assert np.isfinite(np.array(scores)).all()
    assert scores.argmax().item() == (0 if penalty < 1 else 2)


@pytest.mark.parametrize(
    ("name", "drafter", "depth", "seeded"),
    [
        ("all", "good", 3, False),
        ("presence", "half", 2, True),
        pytest.param("repetition", "good", 3, False, marks=pytest.mark.long),
        pytest.param("bias", "half", 2, False, marks=pytest.mark.long),
        pytest.param("frequency", "good", 1, True, marks=pytest.mark.long),
        pytest.param("all", "good", 4, True, marks=pytest.mark.long),
    ],
)
def test_s2_both_rules_are_lossless_with_bias_and_penalties(
    name: str, drafter: str, depth: int, seeded: bool
) -> None:
    """The joint of the first three tokens is the target's, each given those before it."""
    drawn = requests(ADJUSTED[name], DRAWS, seeded=seeded)
    assert joint_p_value(TABLE, drawn, DRAFTERS[drafter], depth, FIRST) > 1e-4


def without_last_draft(
    logits: mx.array, rows: DrawRows, flat: np.ndarray, drafts: mx.array | None
) -> mx.array:
    """The mistake of a history that ends one token early at a draft's place."""
    owners, offsets = rows.owners[flat], rows.offsets[flat]
    before = None
    if rows.depth_max:
        assert drafts is not None
        past = np.arange(rows.depth_max) < offsets[:, None] - 1
        before = mx.where(mx.array(past), drafts[mx.array(owners)], -1)
    return rows.penalties.everywhere(logits, owners, before)


@pytest.mark.parametrize(
    ("name", "seeded"), few_quick([("presence", False), ("all", True)], ("all", True))
)
def test_s2_notices_a_round_whose_history_is_short_of_one_draft(
    monkeypatch: pytest.MonkeyPatch, name: str, seeded: bool
) -> None:
    """The inverse of S2."""
    monkeypatch.setattr(product, "_adjusted", without_last_draft)
    drawn = requests(ADJUSTED[name], DRAWS, seeded=seeded)
    assert joint_p_value(TABLE, drawn, DRAFTERS["good"], 2, FIRST) < 1e-4


@pytest.mark.parametrize(
    ("name", "seeded"),
    few_quick([("frequency", False), ("repetition", True)], ("frequency", False)),
)
def test_s2_notices_a_tally_that_is_one_commit_late(
    monkeypatch: pytest.MonkeyPatch, name: str, seeded: bool
) -> None:
    """The inverse of S2."""
    push = Tally.push
    pushed: dict[int, Sequence[int]] = {}

    def late(tally: Tally, tokens: Sequence[int]) -> None:
        waiting = pushed.get(id(tally), ())
        pushed[id(tally)] = tokens
        push(tally, waiting)
        tally.reply_tokens += len(tokens) - len(waiting)

    monkeypatch.setattr(Tally, "push", late)
    drawn = requests(ADJUSTED[name], DRAWS, seeded=seeded)
    assert joint_p_value(TABLE, drawn, DRAFTERS["good"], 0, FIRST) < 1e-4


def depth_of(row: int, length: int) -> int:
    return (row * 7 + length * 3) % 5


@pytest.mark.parametrize("drafter", list(DRAFTERS))
def test_s5_seeded_tokens_do_not_depend_on_depth_or_drafter(drafter: str) -> None:
    samplings = [s for f in ADJUSTED.values() for s in requests(f, 30, seeded=True)]
    plain, _ = generate(TABLE, samplings, lambda row, length: 0, None, 9, FIRST)
    for depth in (lambda row, length: 1, lambda row, length: 4, depth_of):
        drafted, _ = generate(TABLE, samplings, depth, DRAFTERS[drafter], 9, FIRST)
        assert plain.tolist() == drafted.tolist()


@pytest.mark.parametrize("drafter", list(DRAFTERS))
def test_s1_greedy_is_the_adjusted_argmax_at_any_depth(drafter: str) -> None:
    samplings = [replace(s, temperature=0.0) for s in ADJUSTED.values()]
    expected = []
    for sampling in samplings:
        reply = [FIRST]
        for _ in range(14):
            scores = adjusted_logits(TABLE[reply[-1]], sampling, [FIRST], reply[1:])
            reply.append(int(scores.argmax()))
        expected.append(reply[1:])
    assert len({*map(tuple, expected)}) == len(samplings), "every penalty must matter"
    for depth in (lambda row, length: 0, lambda row, length: 4, depth_of):
        tokens, _ = generate(TABLE, samplings, depth, DRAFTERS[drafter], 14, FIRST)
        assert expected == tokens.tolist()


def mixed_company() -> list[Sampling]:
    """Rows of every kind with and without penalties, interleaved."""
    kinds = [s for a in ADJUSTED.values() for s in (a, replace(a, temperature=0.0))]
    kinds += [Sampling(), Sampling(1.0), Sampling(0.8, top_k=5), Sampling(1.0, top_p=0.9)]
    return [
        replace(s, seeded=bool((i + j) % 2), noise_key=100 * i + j)
        for j in range(2)
        for i, s in enumerate(kinds)
    ]


def test_s5_company_changes_nobody() -> None:
    """S5: each row gets what it gets alone, whoever else has penalties."""
    samplings = mixed_company()
    together, _ = generate(TABLE, samplings, depth_of, DRAFTERS["good"], 9, FIRST)
    for row, sampling in enumerate(samplings):

        def depth(_: int, length: int, row: int = row) -> int:
            return depth_of(row, length)

        alone, _ = generate(TABLE, [sampling], depth, DRAFTERS["good"], 9, FIRST)
        assert alone[0].tolist() == together[row].tolist()


@pytest.mark.parametrize("seeded", [False, True], ids=["rejection", "shared-noise"])
@pytest.mark.parametrize("name", ["repetition", "frequency", "all"])
def test_a_drafter_with_the_targets_history_is_always_accepted(name: str, seeded: bool) -> None:
    """Drafter and target look at one history: equal logits give equal distributions throughout."""
    _, rate = generate(
        TABLE, requests(ADJUSTED[name], 500, seeded=seeded), lambda *_: 4, table_drafter(TABLE), 10
    )
    assert rate > 0.999


def test_a_proposal_is_drawn_from_the_distribution_that_is_handed_on() -> None:
    """S2 rests on it: q is whatever the drafter drew from, its penalties and drafts included."""
    count, sampling = 20_000, ADJUSTED["all"]
    samplings = requests(sampling, count, seeded=False)
    tallies = tuple(Tally(s, [FIRST], VOCABULARY) for s in samplings)
    rows = DrawRows(tuple(samplings), (2,) * count, (0,) * count, tallies)
    said = [mx.full((count,), 7, mx.int32)]
    logits = mx.array(np.tile(GOOD[7], (count, 1)))
    tokens, distribution = draft(DraftLogits(logits), rows, range(count), 1, said)
    assert distribution is not None
    expected = np.zeros(VOCABULARY)
    expected[np.array(distribution.ids)[0]] = np.exp(np.array(distribution.log_probs)[0])
    seen = np.bincount(np.array(tokens), minlength=VOCABULARY) / count
    assert (np.abs(seen - expected) <= 5 * np.sqrt(expected / count)).all()


def test_garbage_beyond_a_depth_is_no_history() -> None:
    """S3: rows without drafts beside deep ones; the runner pads with anything."""
    samplings = tuple(mixed_company())
    depth = tuple(depth_of(row, 1) for row in range(len(samplings)))
    tallies = tuple(Tally(s, [FIRST], VOCABULARY) if s.adjusted else None for s in samplings)
    rows = DrawRows(samplings, depth, (0,) * len(samplings), tallies)
    last = np.arange(len(samplings), dtype=np.int32) % VOCABULARY
    drafts, distributions = propose_all(rows, last, DRAFTERS["good"])
    logits = target_logits(TABLE, rows, last, drafts)
    outside = np.arange(rows.depth_max) >= np.array(depth)[:, None]
    results = []
    for filler in (-1, 2**31 - 1, FIRST):
        filled = mx.array(np.where(outside, filler, np.array(drafts)).astype(np.int32))
        result = np.array(verify(logits, rows, filled, distributions))
        kept = result[:, -1]
        results.append([row[: n + 1].tolist() for row, n in zip(result, kept, strict=True)])
    assert results[0] == results[1] == results[2]


def test_rows_without_penalties_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No table is built and nothing is worked where no row of a step has bias or penalties."""

    def never(*_: object) -> Never:
        raise AssertionError("asked for penalties")

    monkeypatch.setattr(Penalties, "of", never)
    monkeypatch.setattr(product, "_adjusted", never)
    monkeypatch.setattr(proposals, "_adjusted", never)
    plain = [s for s in mixed_company() if not s.adjusted]
    generate(TABLE, plain, depth_of, DRAFTERS["good"], 5, FIRST)
    with pytest.raises(AssertionError, match="asked"):
        generate(TABLE, mixed_company(), depth_of, DRAFTERS["good"], 5, FIRST)


def test_a_row_without_its_tally_is_our_mistake() -> None:
    sampling = ADJUSTED["presence"]
    with pytest.raises(AssertionError):
        DrawRows((sampling,), (0,), (0,))
    with pytest.raises(AssertionError):
        DrawRows((sampling,), (0,), (3,), (Tally(sampling, [], VOCABULARY),))
    with pytest.raises(AssertionError):
        DrawRows((Sampling(),), (0,), (0,), (Tally(sampling, [], VOCABULARY),))


def test_nothing_waits_for_the_device() -> None:
    """One sync per round is the runner's: under a trace, reading a value raises."""
    samplings = tuple(mixed_company())
    count = len(samplings)
    tallies = tuple(Tally(s, [FIRST], VOCABULARY) if s.adjusted else None for s in samplings)
    depth = tuple(depth_of(r, 1) for r in range(count))
    rows = DrawRows(samplings, depth, (0,) * count, tallies)

    def step(logits: mx.array, table: mx.array) -> mx.array:
        said: list[mx.array] = []
        distributions = []
        for j in range(rows.depth_max):
            subset = drafting(rows, j)
            before = [tokens[mx.array(subset)] for tokens in said]
            tokens, distribution = draft(DraftLogits(table[: len(subset)]), rows, subset, j, before)
            distributions.append(distribution)
            whole = mx.zeros((count,), mx.int32)
            whole[mx.array(subset)] = tokens
            said.append(whole)
        return verify(logits, rows, mx.stack(said, axis=1), distributions)

    logits = mx.array(np.tile(TABLE, (9, 1))[: len(rows.owners)])
    table = mx.array(np.tile(TABLE, (3, 1))[:count])
    assert step(logits, table).shape == mx.compile(step)(logits, table).shape

"""Masks through both acceptance rules: what comes out is the target's distribution under them.

The drafter knows no mask: it proposes what is ruled out, and what is behind that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from sapwood.model.sampling import acceptance as product
from sapwood.model.sampling.acceptance import verify
from sapwood.model.sampling.distribution import DrawRows
from sapwood.model.sampling.masking import masked, packed_masks
from sapwood.scheduler.sampling import Sampling
from tests.model.sampling import markov
from tests.model.sampling.markov import Drafter, forced_then, generate, table_drafter

VOCABULARY, FIRST = 16, 3
RNG = np.random.default_rng(30)
TABLE = RNG.normal(0, 1.5, (VOCABULARY, VOCABULARY)).astype(np.float32)
GOOD = TABLE + RNG.normal(0, 0.7, TABLE.shape).astype(np.float32)
# A third of all, at least one, and of some tokens only one: what a grammar forces.
ALLOWED = RNG.random(TABLE.shape) < 0.4
ALLOWED[np.arange(VOCABULARY), RNG.integers(0, VOCABULARY, VOCABULARY)] = True
ALLOWED[5] = np.arange(VOCABULARY) == 9
DRAFTERS: dict[str, Drafter] = {"good": table_drafter(GOOD), "opposite": table_drafter(-4 * TABLE)}
SAMPLINGS = {
    "temperature": Sampling(0.8),
    "top_k": Sampling(1.2, top_k=5),
    "top_p": Sampling(1.0, top_p=0.8),
    "all, penalised": Sampling(
        1.4, 9, 0.9, 0.03, repetition_penalty=1.3, frequency_penalty=0.3, logit_bias=((2, 1.5),)
    ),
}


def joint_p_value(name: str, drafter: str, depth: int, *, seeded: bool, rows: int) -> float:
    drawn = [replace(SAMPLINGS[name], seeded=seeded, noise_key=key) for key in range(rows)]
    return markov.joint_p_value(TABLE, drawn, DRAFTERS[drafter], depth, FIRST, ALLOWED)


@pytest.mark.parametrize("seeded", [False, True])
@pytest.mark.parametrize(
    ("name", "drafter", "depth"),
    [
        ("temperature", "good", 3),
        ("top_k", "opposite", 1),
        pytest.param("top_p", "good", 2, marks=pytest.mark.long),
        pytest.param("all, penalised", "good", 4, marks=pytest.mark.long),
    ],
)
def test_s2_under_masks(name: str, drafter: str, depth: int, seeded: bool) -> None:
    """The joint of the first three tokens is that of the masked table, whatever was drafted."""
    assert joint_p_value(name, drafter, depth, seeded=seeded, rows=15_000) > 1e-4


@pytest.mark.parametrize(
    "broken",
    [lambda logits, masks: logits, lambda logits, masks: mx.where(mx.array(False), 0, logits - 1)],
    ids=["no mask", "another constant"],
)
def test_s2_notices_where_masks_are_left_out(
    monkeypatch: pytest.MonkeyPatch, broken: Callable[..., mx.array]
) -> None:
    monkeypatch.setattr(product, "masked", broken)
    assert joint_p_value("temperature", "good", 2, seeded=False, rows=10_000) < 1e-4


# The usual spelling of what is certain: often the target's own choice, and often not.
USUAL = np.where(ALLOWED, GOOD, -np.inf).argmax(axis=1)
LEGAL_AT_TIMES = RNG.integers(0, VOCABULARY, VOCABULARY)


def forced_p_value(forced: int, usual: np.ndarray, depth: int, *, seeded: bool) -> float:
    drawn = [
        replace(SAMPLINGS["temperature"], seeded=seeded, noise_key=key) for key in range(10_000)
    ]
    drafter = forced_then(forced, usual, DRAFTERS["good"])
    return markov.joint_p_value(TABLE, drawn, drafter, depth, FIRST, ALLOWED, forced)


@pytest.mark.parametrize(
    ("usual", "forced", "depth", "seeded"),
    [
        (USUAL, 2, 2, False),
        (LEGAL_AT_TIMES, 1, 3, False),
        pytest.param(LEGAL_AT_TIMES, 2, 2, False, marks=pytest.mark.long),
        pytest.param(USUAL, 2, 3, True, marks=pytest.mark.long),
    ],
    ids=["all", "the first of three", "all, at times illegal", "two of three, seeded"],
)
def test_s2_forced_drafts_are_drawn_as_all_else(
    usual: np.ndarray, forced: int, depth: int, seeded: bool
) -> None:
    """Nobody drew them, so there is nothing to weigh them by; what comes out is the target's."""
    assert forced_p_value(forced, usual, depth, seeded=seeded) > 1e-4


def test_s2_notices_where_forced_drafts_are_taken_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = product._judge

    def taken(*of: Any) -> tuple[mx.array, mx.array | None]:
        tokens, agreed = judge(*of)
        return tokens, None if agreed is None else mx.ones_like(agreed)

    monkeypatch.setattr(product, "_judge", taken)
    assert forced_p_value(2, USUAL, 2, seeded=False) < 1e-4


def test_s5_under_masks_seeded_and_greedy_tokens_do_not_depend_on_depth() -> None:
    samplings = [
        replace(s, seeded=True, noise_key=key) for s in SAMPLINGS.values() for key in range(30)
    ]
    samplings += [Sampling(), Sampling(repetition_penalty=1.2)]
    plain, _ = generate(TABLE, samplings, lambda row, length: 0, None, 9, FIRST, ALLOWED)
    follows = np.concatenate([np.full((len(plain), 1), FIRST), plain], axis=1)
    assert ALLOWED[follows[:, :-1], follows[:, 1:]].all()
    for drafter in DRAFTERS.values():
        for depth in (lambda row, length: 1, lambda row, length: (row + length) % 5):
            drafted, _ = generate(TABLE, samplings, depth, drafter, 9, FIRST, ALLOWED)
            assert plain.tolist() == drafted.tolist()


def test_who_is_not_masked_gets_the_same_bits_beside_who_is() -> None:
    """Of every kind of sampler, drafts and logits alike; the masks rule out all but one token."""
    kinds = [
        *SAMPLINGS.values(),
        Sampling(),
        *(replace(s, seeded=True) for s in SAMPLINGS.values()),
    ]
    free = tuple(s for s in kinds if not s.adjusted)
    depth = tuple(n % 4 for n in range(len(free)))
    rows = DrawRows(free, depth, (5,) * len(free))
    last = np.arange(len(free), dtype=np.int32)
    drafts, distributions = markov.propose_all(rows, last, DRAFTERS["good"])
    logits = markov.target_logits(TABLE, rows, last, drafts)
    alone = verify(logits, rows, drafts, distributions)
    both = DrawRows(
        (*free, Sampling(), Sampling(1.0, seeded=True)),
        (*depth, 0, 0),
        (*rows.index, 0, 0),
        constrained=(False,) * len(free) + (True, True),
    )
    only = np.arange(VOCABULARY) == 7
    masks = mx.array(np.packbits(np.stack([only, only]), axis=1, bitorder="little"))
    assert drafts is not None
    more = mx.concatenate([drafts, mx.zeros((2, drafts.shape[1]), mx.int32)])
    together = verify(mx.concatenate([logits, logits[:2]]), both, more, distributions, masks)
    assert together[:-2].tolist() == alone.tolist()
    assert together[-2:, 0].tolist() == [7, 7]


@pytest.mark.parametrize("width", [1, 8, 31, 32, 33, 300])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_a_bit_is_a_token(width: int, dtype: mx.Dtype) -> None:
    words = RNG.integers(-(2**31), 2**31, (3, -(-width // 32))).astype(np.int32)
    logits = mx.random.normal((3, width)).astype(dtype)
    found = masked(logits, packed_masks(words))
    kept = np.array([[words[r, t // 32] >> (t % 32) & 1 for t in range(width)] for r in range(3)])
    assert found.dtype == dtype
    assert mx.array_equal(mx.where(mx.array(kept > 0), logits, -mx.inf), found)


def test_a_constrained_row_without_masks_is_our_mistake() -> None:
    rows = DrawRows((Sampling(),), (0,), (0,), constrained=(True,))
    with pytest.raises(AssertionError, match="masks"):
        verify(mx.zeros((1, 8)), rows)

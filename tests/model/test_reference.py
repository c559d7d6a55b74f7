"""Every family says what transformers says of it, at every position and in any slices.

The goldens are transformers' own (fixtures/README.md). Greedy text and accepted drafts through the
runner are in test_runner, the drafter by itself in test_assistant.
"""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from sapwood.model.checkpoint.config_file import read_assistant_config
from sapwood.model.pair import load_pair, model_facts
from tests.model.packed import ROUND_MAX, Feed, Sequences, packed
from tests.model.reference import (
    DETAILED,
    FAMILIES,
    GAP_MIN,
    PROMPTS,
    VARIANTS,
    checkpoint,
    copied,
    golden,
    logits,
    target_config,
)

TOLERANCE = 1e-4
LONG = "12b-tiny"
ALL = pytest.mark.parametrize("name", FAMILIES)


@ALL
def test_no_golden_hangs_on_float32_noise(name: str) -> None:
    """What may be compared exactly: all greedy tokens, and at least 19 of 20 drafts."""
    arrays = golden(name)
    for prompt in PROMPTS:
        assert len(arrays[f"p{prompt}_greedy"]) >= 64
        assert arrays[f"p{prompt}_greedy_gap"].min() >= GAP_MIN
    for variant in VARIANTS:
        gaps = np.concatenate([arrays[f"p{p}_draft_{variant}_gap"] for p in PROMPTS])
        certain = np.minimum.accumulate(gaps, axis=1) >= GAP_MIN  # no tie in its row before it
        assert certain.mean() >= 0.95


@ALL
def test_prompts_are_shorter_than_at_and_beyond_one_and_three_windows(name: str) -> None:
    window = target_config(name).text.window
    lengths = [len(golden(name)[f"p{prompt}_ids"]) for prompt in PROMPTS]
    assert {window, window + 1, 3 * window} < set(lengths)
    assert min(lengths) < window and max(lengths) > 3 * window


@ALL
@pytest.mark.parametrize("variant", VARIANTS)
def test_acceptance_is_partial(name: str, variant: str) -> None:
    """A drafter that is always or never right would prove nothing about rollback."""
    rounds = [golden(name)[f"p{prompt}_rounds_{variant}_k3"] for prompt in PROMPTS]
    taken = np.concatenate(rounds)
    assert {0, 1, 2, 3} == set(taken.tolist())


@ALL
def test_packed_logits_and_hidden_rows_equal_the_references_in_any_slices(name: str) -> None:
    """All prompts in one batch, in rounds that show every row, each of a random length."""
    rng, sequences, arrays = np.random.default_rng(11), Sequences(name), golden(name)
    for prompt in PROMPTS:
        sequences.admit(prompt)
    compared = 0
    while going := [p for p in PROMPTS if _offset(sequences, p) < len(arrays[f"p{p}_ids"])]:
        feeds, starts = {}, {}
        for prompt in going:
            starts[prompt] = at = _offset(sequences, prompt)
            fed = arrays[f"p{prompt}_ids"][at : at + int(rng.integers(1, ROUND_MAX + 1))]
            feeds[prompt] = Feed(fed.tolist(), kept=len(fed))
        for prompt, rows in sequences.step(feeds).items():
            shown = slice(starts[prompt], starts[prompt] + len(rows))
            _close(rows, arrays[f"p{prompt}_logits"][shown])
            _close(np.array(sequences.hidden[prompt]), arrays[f"p{prompt}_hidden"][shown])
            compared += len(rows)
    assert compared == sum(len(arrays[f"p{p}_ids"]) for p in PROMPTS)


@ALL
def test_a_prompts_last_row_is_the_references_however_its_prefill_was_cut(name: str) -> None:
    rng, arrays = np.random.default_rng(12), golden(name)
    sequences = Sequences(name)
    for prompt in PROMPTS:
        ids = arrays[f"p{prompt}_ids"]
        sequences.admit(prompt)
        inner = np.sort(rng.choice(np.arange(1, len(ids)), 3, replace=False))
        for end, part in zip([*inner, len(ids)], np.split(ids, inner), strict=True):
            rows = sequences.step({prompt: Feed(part.tolist())})[prompt]
            _close(rows[-1], arrays[f"p{prompt}_logits"][end - 1])


def _offset(sequences: Sequences, prompt: int) -> int:
    return sequences.caches.offset(prompt)


def _close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["e2b-tiny", "e4b-tiny"])
@pytest.mark.parametrize("prompt", DETAILED)
def test_per_layer_inputs_equal_the_reference(name: str, prompt: int) -> None:
    """Their common factor is invisible in the logits: a norm follows."""
    model, tokens = packed(name), mx.array(golden(name)[f"p{prompt}_ids"])
    found = model._per_layer_inputs(tokens, model.embed(tokens))
    assert found is not None
    np.testing.assert_allclose(
        np.array(found), golden(name)[f"p{prompt}_ple"], rtol=0, atol=TOLERANCE / 10
    )


def test_a_prompt_of_many_windows_gives_the_references_logits_and_text() -> None:
    """4,200 tokens: slices that end where the reference was asked, then token by token."""
    arrays, sequences = golden(LONG), Sequences(LONG)
    ids, at = arrays["long_ids"].tolist(), arrays["long_logits_at"].tolist()
    assert len(ids) >= 4096 and at[0] == 0 and at[-1] == len(ids) - 1
    sequences.admit(0)
    done = 0
    for position, expected in zip(at, arrays["long_logits"], strict=True):
        rows = sequences.step({0: Feed(ids[done : position + 1])})[0]
        _close(rows[-1], expected)
        done = position + 1
    greedy = [int(rows[-1].argmax())]
    while len(greedy) < len(arrays["long_greedy"]):
        greedy.append(int(sequences.step({0: Feed(greedy[-1:], kept=1)})[0].argmax()))
    assert greedy == arrays["long_greedy"].tolist()
    assert arrays["long_greedy_gap"].min() >= GAP_MIN


@ALL
def test_a_config_that_transformers_saved_gives_the_same_facts_and_logits(
    name: str, tmp_path: Path
) -> None:
    target, drafter = (copied(n, tmp_path, weights=True) for n in (name, f"{name}-assistant"))
    for directory in (target, drafter):
        saved = directory.path / "config.saved-by-transformers.json"
        saved.replace(directory.path / "config.json")
    released = load_pair(checkpoint(name), checkpoint(f"{name}-assistant"), "float32")
    resaved = load_pair(target, drafter, "float32")
    assert model_facts(resaved, 5) == model_facts(released, 5)
    assert read_assistant_config(drafter) == read_assistant_config(checkpoint(f"{name}-assistant"))
    ids = golden(name)["p3_ids"]
    np.testing.assert_array_equal(logits(resaved.target, ids), logits(released.target, ids))

"""The drafter drafts as transformers' does, from the reference's own K/V and hidden rows."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from sapwood.model.assistant import Attend
from sapwood.model.checkpoint.config import AttentionKind
from sapwood.model.checkpoint.config_file import read_assistant_config
from sapwood.model.checkpoint.files import ModelRefused
from sapwood.model.checkpoint.safetensors import weight_files
from sapwood.model.sampling.proposals import DraftLogits
from tests.model.reference import (
    DETAILED,
    FAMILIES,
    GAP_MIN,
    VARIANTS,
    Array,
    assistant,
    checkpoint,
    copied,
    golden,
    load_assistant,
    target,
    target_config,
)

_DEPTH = 7
_COMMITTED = np.arange(63)  # generated tokens before a round: one row each
_LISTED = (0, 50)  # the rounds whose logits the reference keeps


def _embedded(name: str, tokens: Array) -> mx.array:
    text = target(name).model
    scaled: mx.array = text.embed_tokens(mx.array(tokens)) * text.embed_scale
    return scaled


def _attend(name: str, prompt: int, committed: Array, sliding_keys: int) -> Attend:
    """Rows attend to positions [0, committed), sliding layers to the newest of them only."""
    arrays = golden(name)

    def attend(kind: AttentionKind, queries: mx.array) -> mx.array:
        keys, values = (mx.array(arrays[f"p{prompt}_kv_{kind}_{x}"]) for x in "kv")
        position = np.arange(keys.shape[1])[None]
        oldest = committed - sliding_keys if kind == "sliding" else np.zeros_like(committed)
        seen = (position >= oldest[:, None]) & (position < committed[:, None])
        rows = (len(committed), *keys.shape)
        return mx.fast.scaled_dot_product_attention(
            queries[:, :, None, :],
            mx.broadcast_to(keys, rows),
            mx.broadcast_to(values, rows),
            scale=1.0,
            mask=mx.array(seen)[:, None, None, :],
        )[:, :, 0, :]

    return attend


def _spread(drafted: DraftLogits, vocabulary: int) -> Array:
    """Logits over the vocabulary, as the reference writes them: unselected = min - 1."""
    logits = np.array(drafted.logits)
    if drafted.ids is None:
        return logits
    full = np.repeat(logits.min(-1, keepdims=True) - 1, vocabulary, axis=-1)
    np.put_along_axis(full, np.array(drafted.ids), logits, axis=-1)
    return full


@pytest.mark.parametrize(("variant", "back"), VARIANTS.items())
@pytest.mark.parametrize("prompt", DETAILED)
@pytest.mark.parametrize("name", FAMILIES)
def test_drafts_logits_and_state_equal_the_reference(
    name: str, prompt: int, variant: str, back: int
) -> None:
    """63 rounds as 63 rows, each fed with its own drafts."""
    arrays, (drafter, config) = golden(name), assistant(name)
    drafts = arrays[f"p{prompt}_draft_{variant}"]
    gaps = arrays[f"p{prompt}_draft_{variant}_gap"]
    committed = len(arrays[f"p{prompt}_ids"]) + _COMMITTED
    attend = _attend(name, prompt, committed, target_config(name).text.window + 1 - back)
    turns = drafter.turns(mx.array((committed - back).astype(np.int32)))
    tokens = arrays[f"p{prompt}_greedy"][_COMMITTED]
    hidden = mx.array(arrays[f"p{prompt}_cont_hidden"][committed - 1])
    certain = np.ones(len(committed), bool)
    compared = 0
    for depth in range(_DEPTH):
        drafted, hidden = drafter.step(_embedded(name, tokens), hidden, turns, attend)
        logits = _spread(drafted, config.text.vocabulary)
        tokens = logits.argmax(-1)
        for row, rounds in enumerate(_LISTED):
            if not certain[rounds]:
                continue
            for found, what in ((logits, "logits"), (np.array(hidden), "state")):
                expected = arrays[f"p{prompt}_draft_{variant}_{what}"][row, depth]
                np.testing.assert_allclose(found[rounds], expected, rtol=0, atol=1e-4)
        certain &= gaps[:, depth] >= GAP_MIN
        np.testing.assert_array_equal(tokens[certain], drafts[certain, depth])
        compared += certain.sum()
    assert compared >= 0.95 * drafts.size


def test_an_ordered_head_gives_only_the_best_clusters_tokens() -> None:
    _, config = assistant("e2b-tiny")
    assert config.ordered_head is not None
    drafted = _one_step("e2b-tiny", rows=3)
    per_cluster = config.text.vocabulary // config.ordered_head.centroids
    assert drafted.ids is not None
    assert drafted.ids.shape == drafted.logits.shape
    assert drafted.ids.shape == (3, config.ordered_head.top_k * per_cluster)
    assert all(len(set(row)) == len(row) for row in np.array(drafted.ids).tolist())


def test_a_dense_head_gives_the_vocabulary() -> None:
    drafted = _one_step("a4b-tiny", rows=3)
    assert drafted.ids is None
    assert drafted.logits.shape == (3, 1024)


def _one_step(name: str, rows: int) -> DraftLogits:
    drafter, config = assistant(name)
    width = config.backbone_hidden_size
    row = mx.ones((rows, width))
    turns = drafter.turns(mx.zeros((rows,), mx.int32))
    drafted, _ = drafter.step(row, row, turns, lambda _, queries: queries)
    return drafted


@pytest.mark.parametrize("damage", ["repeated", "outside"])
def test_an_ordering_that_is_no_permutation_is_refused(damage: str, tmp_path: Path) -> None:
    """An id beyond the vocabulary would read beyond the embedding."""
    directory = copied("e2b-tiny-assistant", tmp_path)
    tensors = mx.load(str(checkpoint("e2b-tiny-assistant").path / "model.safetensors"))
    assert isinstance(tensors, dict)
    ordering = np.array(tensors["masked_embedding.token_ordering"])
    ordering[0] = ordering[1] if damage == "repeated" else 1 << 40
    tensors["masked_embedding.token_ordering"] = mx.array(ordering)
    mx.save_safetensors(str(directory.path / "model.safetensors"), tensors)
    with pytest.raises(ModelRefused, match="no permutation"):
        load_assistant(weight_files(directory), read_assistant_config(directory), mx.float32)

"""Random checkpoints in real format, made in a test and loaded through the real loader.

- Their configs are those of a committed reference pair with every size made small.
- The drafter is random too: it is as bad as drafters get.
- `twins`: half of the vocabulary repeats the other half up to 1e-7, so that every token has a rival
  within float32 noise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx_lm.models.gemma4_text import Model

from sapwood.model.assistant import Assistant
from sapwood.model.checkpoint.config_file import read_assistant_config, read_target_config
from sapwood.model.checkpoint.files import ModelDirectory
from sapwood.model.pair import Pair, load_pair
from tests.model.reference import copied, edit, parameters

WINDOW = 8
_SIZES = {
    "text_config.hidden_size": 32,
    "text_config.intermediate_size": 48,
    "text_config.head_dim": 16,
    "text_config.global_head_dim": 32,
    "text_config.num_attention_heads": 2,
    "text_config.sliding_window": WINDOW,
}
_KINDS = ("sliding_attention", "full_attention")


def random_pair(
    base: str,
    place: Path,
    vocabulary: int,
    seed: int = 0,
    *,
    borrowing: int = 0,
    twins: bool = False,
    kinds: Sequence[str] = _KINDS,
    sizes: Mapping[str, Any] = {},
) -> Pair:
    """A pair in the manner of `base`, written below `place` and loaded.

    Layers of these kinds with K/V of their own, and `borrowing` that have none; in the drafter the
    same kinds once. sizes: of both configs' keys where not the usual ones.
    """
    rng = np.random.default_rng(seed)
    target, drafter = copied(base, place), copied(f"{base}-assistant", place)
    layers = (list(kinds) * 3)[: len(kinds) + borrowing]
    per_layer = 8 if base.startswith("e2b") else 0
    sizes = _SIZES | dict(sizes)
    vocabularies = {
        "text_config.vocab_size": vocabulary,
        "text_config.vocab_size_per_layer_input": vocabulary,
    }
    eos: dict[str, Any] = {"eos_token_id": [1]}
    change = (
        vocabularies
        | eos
        | {
            "text_config.layer_types": layers,
            "text_config.num_hidden_layers": len(layers),
            "text_config.num_kv_shared_layers": borrowing,
            "text_config.hidden_size_per_layer_input": per_layer,
        }
        | sizes
    )
    edit(target, "config.json", change)
    edit(target, "generation_config.json", eos)
    change = (
        vocabularies
        | sizes
        | {
            "backbone_hidden_size": sizes["text_config.hidden_size"],
            "num_centroids": 4,
            "centroid_intermediate_top_k": 2,
            "text_config.layer_types": list(kinds),
            "text_config.num_hidden_layers": len(kinds),
            "text_config.num_kv_shared_layers": len(kinds),
            "text_config.vocab_size_per_layer_input": 0,
            "text_config.hidden_size_per_layer_input": 0,
        }
    )
    edit(drafter, "config.json", change)
    _cut_vocabulary(target, vocabulary)
    _write(target, Model(read_target_config(target).text.model_args()), rng, twins)
    _write(drafter, Assistant(read_assistant_config(drafter)), rng, False)
    return load_pair(target, drafter, "float32")


def _cut_vocabulary(directory: ModelDirectory, vocabulary: int) -> None:
    path = directory.path / "tokenizer.json"
    document = json.loads(path.read_text())
    words = document["model"]["vocab"]
    document["model"]["vocab"] = {word: i for word, i in words.items() if i < vocabulary}
    if vocabulary < len(words):
        document["model"]["merges"] = []
    document["added_tokens"] = [t for t in document["added_tokens"] if t["id"] < vocabulary]
    path.write_text(json.dumps(document))


def _write(
    directory: ModelDirectory, module: nn.Module, rng: np.random.Generator, twins: bool
) -> None:
    tensors = {name: _draw(array, rng) for name, array in parameters(module).items()}
    if twins:
        _repeat_half(tensors, rng)
    mx.save_safetensors(str(directory.path / "model.safetensors"), tensors, {"format": "pt"})


def _draw(array: mx.array, rng: np.random.Generator) -> mx.array:
    if array.dtype == mx.int32:  # the ordered head's clusters
        return mx.array(rng.permutation(array.size).astype(np.int32))
    if array.ndim == 1:
        return mx.array(rng.uniform(0.8, 1.2, array.shape).astype(np.float32))
    scale = np.float32(array.shape[-1] ** -0.5)
    return mx.array(rng.standard_normal(array.shape, np.float32) * scale)


def _repeat_half(tensors: Mapping[str, mx.array], rng: np.random.Generator) -> None:
    for name in (n for n in tensors if n.endswith(("embed_tokens.weight", "per_layer.weight"))):
        half = tensors[name].shape[0] // 2
        noise = 1 + 1e-7 * rng.standard_normal((half, 1)).astype(np.float32)
        tensors[name][half : 2 * half] = tensors[name][:half] * mx.array(noise)

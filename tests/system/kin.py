"""A random pair whose drafter has much of the target's law, so that drafts of all places count.

Random weights alone make a drafter that knows nothing: one draft in twenty is accepted, and a
round's third place is hardly ever reached. Here both embed tokens alike; their layers disagree.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import mlx.core as mx

from sapwood.model.checkpoint.files import ModelDirectory
from sapwood.model.pair import Pair, load_pair
from tests.model.reference import edit
from tests.system.tiny import random_pair

Weights: TypeAlias = dict[str, mx.array]

_POST_NORMS = (
    "post_attention_layernorm",
    "post_feedforward_layernorm",
    "post_per_layer_input_norm",
)


def kindred_pair(place: Path, vocabulary: int, seed: int, **generation: Any) -> Pair:
    """In the manner of e2b: per-layer inputs, and a drafter that scores half of the vocabulary.

    generation: keys of the target's generation_config.json.
    """
    random_pair("e2b-tiny", place, vocabulary, seed)
    directory, drafter = (ModelDirectory(place / f"e2b-tiny{end}") for end in ("", "-assistant"))
    edit(directory, "generation_config.json", generation)
    # In the files: what steps multiply by is laid out when a pair is loaded, and changes no more.
    embedding = _rewritten(directory, _with_little_of_its_layers)["model.embed_tokens.weight"]
    _rewritten(drafter, lambda weights: _knowing(weights, embedding))
    return load_pair(directory, drafter, "float32")


def _rewritten(directory: ModelDirectory, change: Callable[[Weights], Weights]) -> Weights:
    path = str(directory.path / "model.safetensors")
    weights = mx.load(path)
    assert isinstance(weights, dict)
    mx.eval(weights)
    weights |= change(weights)
    mx.save_safetensors(path, weights)
    return weights


def _with_little_of_its_layers(weights: Weights) -> Weights:
    return _damped(weights, 0.35) | {"model.norm.weight": _final_norm(weights)}


def _knowing(weights: Weights, embedding: mx.array) -> Weights:
    """The drafter, which embeds as the target does and takes the token for most of its input."""
    eye, centroids = mx.eye(embedding.shape[1]), weights["masked_embedding.centroids.weight"]
    ids = weights["masked_embedding.token_ordering"].reshape(centroids.shape[0], -1)
    return _damped(weights, 0.1) | {
        "model.norm.weight": _final_norm(weights),
        "model.embed_tokens.weight": embedding,
        "pre_projection.weight": mx.concatenate([eye, 0.3 * eye], axis=1),
        "masked_embedding.centroids.weight": embedding[ids].mean(axis=1),
    }


def _final_norm(weights: Weights) -> mx.array:
    return mx.full(weights["model.norm.weight"].shape, 0.7)


def _damped(weights: Weights, factor: float) -> Weights:
    """How much layers add to what they are given."""
    return {k: w * factor for k, w in weights.items() if k.split(".")[-2] in _POST_NORMS}

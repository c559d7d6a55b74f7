"""A random pair whose drafter has much of the target's law, so that drafts of all places count.

Random weights alone make a drafter that knows nothing: one draft in twenty is accepted, and a
round's third place is hardly ever reached. Here both embed tokens alike; their layers disagree.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx

from sapwood.model.checkpoint.files import ModelDirectory
from sapwood.model.checkpoint.weights import arrays
from sapwood.model.pair import Pair, load_pair
from tests.model.reference import edit
from tests.system.tiny import random_pair

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
    pair = load_pair(directory, drafter, "float32")
    assert pair.assistant is not None
    target, assistant = pair.target.model, pair.assistant
    _damp(target.layers, 0.35)
    _damp(assistant.model.layers, 0.1)
    embedding = target.embed_tokens.weight
    target.norm.weight = mx.full(target.norm.weight.shape, 0.7)
    assistant.model.norm.weight = target.norm.weight
    assistant.model.embed_tokens.weight = embedding
    eye = mx.eye(embedding.shape[1])
    assistant.pre_projection.weight = mx.concatenate([eye, 0.3 * eye], axis=1)
    clusters = assistant.masked_embedding
    assert clusters is not None
    ids = clusters.token_ordering.reshape(clusters.count, -1)
    clusters.centroids.weight = embedding[ids].mean(axis=1)
    mx.eval(arrays(pair.target), arrays(assistant))
    return pair


def _damp(layers: list[Any], factor: float) -> None:
    """How much layers add to what they are given."""
    for layer in layers:
        for name in _POST_NORMS:
            if name in layer:
                layer[name].weight = layer[name].weight * factor

"""The rule by which kernels are counted, held against the graph of every family's own forward.

- True shapes without memory, and the graph as Metal has it (tests/model/hollow.py): everything
  counts but for what only looks at an array.
"""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.models.gemma4_text import Model

from bench.families import FAMILIES, PER_LAYER_SIZE, VOCABULARY, Family
from bench.step_work import METAL, MLX_LM_KERNELS, StepWork
from sapwood.cache.arrays.batch import Batch, Span
from sapwood.cache.arrays.live_caches import LiveCaches
from sapwood.model.gemma4 import PackedGemma4
from tests.model.hollow import as_on_metal, hollow, nodes, target_config_of, their_step
from tests.model.step_graph import kernels


@pytest.mark.parametrize("name", FAMILIES)
def test_kernels_are_the_nodes_of_the_graph(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    config = target_config_of(family, tmp_path)
    model = Model(config.text.model_args())
    numbers = hollow(model)
    target = PackedGemma4(model, config.placeholders, METAL)
    window = config.text.window_tokens
    caches = LiveCaches(target.shapes, window, 1, mx.bfloat16, kernels=METAL)
    caches.restore(0, (), 0)
    batch = Batch([Span(0, 0, 1)])
    caches.prepare(batch)
    mx.eval(*caches.arrays)
    with as_on_metal():
        hidden = target.forward(mx.array([5]), batch, caches).hidden
        drawn = mx.argmax(target.logits(hidden), axis=-1)
    found = kernels(nodes([drawn, *caches.arrays], tmp_path))
    # The rule leaves out some 15 kernels that make the sliding layers' mask, once a step.
    assert found == pytest.approx(StepWork(family).kernels, rel=0.01)
    assert numbers == pytest.approx(all_weights(family), 0.002)


@pytest.mark.parametrize("name", FAMILIES)
def test_mlx_lms_kernels_are_the_nodes_of_its_own(name: str, tmp_path: Path) -> None:
    """By this rule the figures of other engines are read."""
    family = FAMILIES[name]
    model = Model(target_config_of(family, tmp_path).text.model_args())
    hollow(model)
    found = kernels(nodes(their_step(model), tmp_path))
    assert found == pytest.approx(StepWork(family, rule=MLX_LM_KERNELS).kernels, rel=0.01)


def all_weights(family: Family) -> int:
    """Embeddings of the layers too, which a step only looks rows up in."""
    experts = 0 if family.mixture is None else family.mixture.experts * family.expert_weights
    per_layer = VOCABULARY * PER_LAYER_SIZE * family.layers if family.per_layer else 0
    return family.dense_weights + family.router_weights + experts + per_layer

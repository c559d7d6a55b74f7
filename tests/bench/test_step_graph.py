"""The rule by which kernels are counted, held against the graph of every family's own forward.

- True shapes without memory: parameters are views of one number, and nothing is evaluated.
- What Metal has a kernel for, and a CPU computes in several operations, is one node here: norms,
  rotation, attention of head size 256. Everything else counts but for what only looks at an array.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_map
from mlx_lm.models.gemma4_text import Model

from bench.families import FAMILIES, HEAD_SIZE, PER_LAYER_SIZE, VOCABULARY, Family
from bench.step_work import METAL, StepWork
from sapwood.cache.arrays.batch import Batch, Span
from sapwood.cache.arrays.live_caches import LiveCaches
from sapwood.model.checkpoint.config import TargetConfig
from sapwood.model.checkpoint.config_file import read_target_config
from sapwood.model.gemma4 import PackedGemma4
from tests.model.reference import copied, edit

VIEWS = {
    *("AsStrided", "Broadcast", "ExpandDims", "Flatten", "Reshape", "Slice", "Split"),
    *("Squeeze", "StopGradient", "Transpose", "Unflatten"),
}


def config_of(family: Family, place: Path) -> TargetConfig:
    """Read by the product, from a config.json with the family's numbers."""
    directory = copied("e2b-tiny" if family.mixture is None else "a4b-tiny", place)
    change: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": PER_LAYER_SIZE if family.per_layer else 0,
        "hidden_size": family.hidden,
        "intermediate_size": family.intermediate,
        "use_double_wide_mlp": family.double_wide,
        "num_hidden_layers": family.layers,
        "num_kv_shared_layers": family.borrowing,
        "num_attention_heads": family.heads,
        "num_key_value_heads": family.kv_heads,
        "num_global_key_value_heads": family.full_kv_heads if family.k_eq_v else None,
        "attention_k_eq_v": family.k_eq_v,
        "sliding_window": family.window,
        "head_dim": HEAD_SIZE,
        "global_head_dim": 2 * HEAD_SIZE,
        "layer_types": [f"{'full' if full else 'sliding'}_attention" for full in family.kinds],
    }
    if (mixture := family.mixture) is not None:
        change |= {
            "num_experts": mixture.experts,
            "top_k_experts": mixture.top_k,
            "moe_intermediate_size": mixture.width,
        }
    edit(directory, "config.json", {f"text_config.{key}": value for key, value in change.items()})
    return read_target_config(directory)


def hollow(model: Model) -> int:
    """Make every parameter a view of one number; returns how many numbers it had."""
    number = mx.array(0.01, mx.bfloat16)
    sizes: list[int] = []

    def view(parameter: mx.array) -> mx.array:
        sizes.append(parameter.size)
        made = mx.broadcast_to(number, parameter.shape)
        mx.eval(made)
        return made

    model.update(tree_map(view, model.parameters()))
    return sum(sizes)


@pytest.fixture
def _as_on_metal(monkeypatch: pytest.MonkeyPatch) -> None:
    unfused = mx.fast.scaled_dot_product_attention

    def attention(queries: mx.array, keys: mx.array, values: mx.array, **how: Any) -> mx.array:
        if queries.shape[-1] == HEAD_SIZE:
            return mx.erf(queries)
        return unfused(queries, keys, values, **how)

    monkeypatch.setattr(mx.fast, "rms_norm", lambda x, *rest: mx.sigmoid(x))
    monkeypatch.setattr(mx.fast, "rope", lambda x, *rest, **how: mx.sign(x))
    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", attention)


@pytest.mark.usefixtures("_as_on_metal")
@pytest.mark.parametrize("name", FAMILIES)
def test_kernels_are_the_nodes_of_the_graph(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    config = config_of(family, tmp_path)
    model = Model(config.text.model_args())
    numbers = hollow(model)
    target = PackedGemma4(model, config.placeholders)
    window = config.text.window_tokens
    caches = LiveCaches(target.shapes, window, 1, mx.bfloat16, kernels=METAL)
    caches.restore(0, (), 0)
    batch = Batch([Span(0, 0, 1)])
    caches.prepare(batch)
    mx.eval(*caches.arrays)
    hidden = target.forward(mx.array([5]), batch, caches).hidden
    drawn = mx.argmax(target.logits(hidden), axis=-1)
    drawing = tmp_path / "graph.dot"
    mx.export_to_dot(str(drawing), drawn, *caches.arrays)
    nodes = re.findall(r'label ="([A-Z]\w+)"', drawing.read_text())
    assert sum(node not in VIEWS for node in nodes) == pytest.approx(StepWork(family).kernels, 0.01)
    assert numbers == pytest.approx(all_weights(family), 0.002)


def all_weights(family: Family) -> int:
    """Embeddings of the layers too, which a step only looks rows up in."""
    experts = 0 if family.mixture is None else family.mixture.experts * family.expert_weights
    per_layer = VOCABULARY * PER_LAYER_SIZE * family.layers if family.per_layer else 0
    return family.dense_weights + family.router_weights + experts + per_layer

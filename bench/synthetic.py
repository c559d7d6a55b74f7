"""A synthetic Gemma 4 pair in real checkpoint format: float32, 50 M parameters, random weights.

- Its numbers mean nothing and its cost is real: shapes, layer pattern and window are those of a
  small Gemma 4.
- Written into a directory of the caller's; the tokenizer is the bundled demo's.
- The drafter is random too, so that nothing is ever accepted: it shows what speculation costs when
  it does not pay. What it gains is measured on the demo pair, whose drafter was trained.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np

from sapwood.model.checkpoint.locate import DEMO

_HIDDEN, _INTERMEDIATE, _HEADS, _KV_HEADS, _HEAD, _GLOBAL_HEAD = 512, 2048, 8, 2, 64, 128
_VOCABULARY, _WINDOW = 8192, 512
_LAYERS = (["sliding_attention"] * 5 + ["full_attention"]) * 2


def text_config(
    layers: list[str], hidden: int, intermediate: int, shared: int
) -> dict[str, object]:
    """A text_config with every key spelled out, as releases do."""
    demo: dict[str, object] = json.loads((DEMO / "target" / "config.json").read_text())
    return demo | {
        "vocab_size": _VOCABULARY,
        "vocab_size_per_layer_input": _VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": len(layers),
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "head_dim": _HEAD,
        "global_head_dim": _GLOBAL_HEAD,
        "sliding_window": _WINDOW,
        "layer_types": layers,
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": shared,
        "use_double_wide_mlp": False,
        "dtype": "float32",
    }


def layer_shapes(kind: str, hidden: int, intermediate: int, owns_kv: bool) -> dict[str, list[int]]:
    """Tensor shapes of one layer, names below `layers.N.`."""
    head = _HEAD if kind == "sliding_attention" else _GLOBAL_HEAD
    norms = (
        "input_layernorm", "post_attention_layernorm",
        "pre_feedforward_layernorm", "post_feedforward_layernorm",
    )  # fmt: skip
    shapes = {f"{name}.weight": [hidden] for name in norms} | {
        "layer_scalar": [1],
        "self_attn.q_proj.weight": [_HEADS * head, hidden],
        "self_attn.o_proj.weight": [hidden, _HEADS * head],
        "self_attn.q_norm.weight": [head],
        "mlp.gate_proj.weight": [intermediate, hidden],
        "mlp.up_proj.weight": [intermediate, hidden],
        "mlp.down_proj.weight": [hidden, intermediate],
    }
    if owns_kv:
        shapes |= {
            "self_attn.k_proj.weight": [_KV_HEADS * head, hidden],
            "self_attn.v_proj.weight": [_KV_HEADS * head, hidden],
            "self_attn.k_norm.weight": [head],
        }
    return shapes


def weights(
    layers: list[str], hidden: int, intermediate: int, owns_kv: bool, rng: np.random.Generator
) -> dict[str, mx.array]:
    """Random tensors below `model.`: matrices that keep a unit scale, norms and scalars of one."""
    shapes = {"embed_tokens.weight": [_VOCABULARY, hidden], "norm.weight": [hidden]}
    for index, kind in enumerate(layers):
        for name, shape in layer_shapes(kind, hidden, intermediate, owns_kv).items():
            shapes[f"layers.{index}.{name}"] = shape
    return {f"model.{name}": draw(shape, rng) for name, shape in shapes.items()}


def draw(shape: list[int], rng: np.random.Generator) -> mx.array:
    if len(shape) == 1:
        return mx.ones(shape)
    return mx.array(rng.standard_normal(shape, np.float32) * np.float32(shape[-1] ** -0.5))


def save_model(directory: Path, config: dict[str, object], tensors: dict[str, mx.array]) -> None:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    mx.save_safetensors(str(directory / "model.safetensors"), tensors, {"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(DEMO / "target" / name, directory / name)
    (directory / "generation_config.json").write_text('{"eos_token_id": [1, 6]}')


def write_synthetic_pair(root: Path, seed: int = 0) -> tuple[Path, Path]:
    """Write the pair below `root`, where it must not be yet: (target directory, drafter's)."""
    target, drafter = root / "target", root / "assistant"
    rng = np.random.default_rng(seed)
    save_model(
        target,
        text_config(_LAYERS, _HIDDEN, _INTERMEDIATE, 0),
        weights(_LAYERS, _HIDDEN, _INTERMEDIATE, True, rng),
    )
    small, layers = 128, ["sliding_attention", "full_attention"]
    tensors = weights(layers, small, 2 * small, False, rng)
    tensors["pre_projection.weight"] = draw([small, 2 * _HIDDEN], rng)
    tensors["post_projection.weight"] = draw([_HIDDEN, small], rng)
    config = json.loads((DEMO / "assistant" / "config.json").read_text())
    config |= {
        "backbone_hidden_size": _HIDDEN,
        "dtype": "float32",
        "text_config": text_config(layers, small, 2 * small, len(layers))
        | {"final_logit_softcapping": None, "vocab_size_per_layer_input": 0},
    }
    save_model(drafter, config, tensors)
    return target, drafter

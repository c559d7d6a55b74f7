"""Random pairs whose layers pack at every group size, packed by mlx and unpacked again by mlx.

Neither way touches code of ours: packing is mlx's own `nn.quantize`, unpacking `mx.dequantize` of
what lies in the file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.models.gemma4_text import Model

from sapwood.model.assistant import Assistant
from sapwood.model.checkpoint.config import Quantization
from sapwood.model.checkpoint.config_file import read_assistant_config, read_target_config
from sapwood.model.checkpoint.files import ModelDirectory
from tests.model.reference import edit, parameters
from tests.system.tiny import random_pair

VOCABULARY = 256
#: every input dimension is a multiple of 128, save the centroids' of E2B's drafter
SIZES = {
    "text_config.hidden_size": 128,
    "text_config.intermediate_size": 128,
    "text_config.head_dim": 64,
    "text_config.global_head_dim": 128,
    "text_config.num_attention_heads": 2,
    "text_config.sliding_window": 8,
    "text_config.moe_intermediate_size": 128,
}
Directories = tuple[ModelDirectory, ModelDirectory]


def plain(base: str, place: Path, seed: int = 3) -> Directories:
    """A random pair in the manner of `base`, in float32 and Hugging Face's own layout."""
    per_layer = {"text_config.hidden_size_per_layer_input": 128} if base == "e2b-tiny" else {}
    random_pair(
        base, place, VOCABULARY, seed, borrowing=int(base == "e2b-tiny"), sizes=SIZES | per_layer
    )
    target, drafter = ModelDirectory(place / base), ModelDirectory(place / f"{base}-assistant")
    _rewrite(target, lambda name: name.replace("model.", "model.language_model.", 1))
    return target, drafter


def _rewrite(directory: ModelDirectory, rename: Any) -> None:
    path = str(directory.path / "model.safetensors")
    tensors = {rename(name): array for name, array in _tensors(directory).items()}
    mx.save_safetensors(path, _joined_experts(tensors), {"format": "pt"})


def _joined_experts(tensors: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Hugging Face's experts: gate and up in one tensor, gate first."""
    joined = dict(tensors)
    for name in [n for n in tensors if n.endswith("switch_glu.gate_proj.weight")]:
        stem = name.removesuffix("switch_glu.gate_proj.weight")
        both = [joined.pop(f"{stem}switch_glu.{half}_proj.weight") for half in ("gate", "up")]
        joined[f"{stem}gate_up_proj"] = mx.concatenate(both, axis=-2)
        joined[f"{stem}down_proj"] = joined.pop(f"{stem}switch_glu.down_proj.weight")
    return joined


def _tensors(directory: ModelDirectory) -> dict[str, mx.array]:
    loaded = mx.load(str(directory.path / "model.safetensors"))
    assert isinstance(loaded, dict)
    mx.eval(loaded)
    return loaded


def packed(pair: Directories, place: Path, packing: Quantization) -> Directories:
    """The pair as mlx packs it, in mlx-community's layout, with a table as they write it."""
    target, drafter = pair
    config = read_target_config(target)
    model = Model(config.text.model_args())
    renamed = {k.replace("model.language_model.", "model."): v for k, v in _tensors(target).items()}
    model.load_weights(list(model.sanitize(renamed).items()))
    assistant = Assistant(read_assistant_config(drafter))
    assistant.load_weights(list(_tensors(drafter).items()))
    return (
        _pack(model, target, place, packing, "language_model."),
        _pack(assistant, drafter, place, packing, ""),
    )


def _pack(
    module: nn.Module, source: ModelDirectory, place: Path, packing: Quantization, prefix: str
) -> ModelDirectory:
    wanted: dict[str, Any] = {
        "group_size": packing.group_size,
        "bits": packing.bits,
        "mode": packing.mode,
    }
    table = dict(wanted)

    def choose(path: str, inner: Any) -> bool | dict[str, Any]:
        if path.endswith("router.proj"):
            table[f"{prefix}{path}"] = {"group_size": 64, "bits": 8}
            return {"group_size": 64, "bits": 8}
        if path.endswith("layers.0.mlp.down_proj"):
            table[f"{prefix}{path}"] = False
            return False
        return hasattr(inner, "to_quantized")

    nn.quantize(module, **wanted, class_predicate=choose)
    made = ModelDirectory(place / f"{source.path.name}-{packing.bits}{packing.mode}")
    shutil.copytree(source.path, made.path)
    named = {f"{prefix}{name}": array for name, array in parameters(module).items()}
    mx.save_safetensors(str(made.path / "model.safetensors"), named, {"format": "mlx"})
    edit(made, "config.json", {"quantization": table, "quantization_config": table})
    return made


def unpacked(directory: ModelDirectory, place: Path) -> ModelDirectory:
    """The same directory with every packed tensor dequantised, by what its table says."""
    made = ModelDirectory(place / f"{directory.path.name}-unpacked")
    shutil.copytree(directory.path, made.path)
    table = json.loads((directory.path / "config.json").read_text())["quantization"]
    tensors = _tensors(directory)
    for name in [n for n in tensors if n.endswith(".scales")]:
        path = name.removesuffix(".scales")
        entry = table.get(path, table)
        stored = [tensors.pop(f"{path}.{k}", None) for k in ("weight", "scales", "biases")]
        scale = tensors.pop(f"{path}.global_scale", None)
        tensors[f"{path}.weight"] = dequantised(stored, entry, scale)
    mx.save_safetensors(str(made.path / "model.safetensors"), tensors, {"format": "mlx"})
    edit(made, "config.json", {"quantization": ..., "quantization_config": ...})
    return made


def dequantised(
    stored: Sequence[mx.array | None], entry: Mapping[str, Any], scale: mx.array | None = None
) -> mx.array:
    """float32, by mlx itself, of weight, scales and biases. scale: mlx's global_scale."""
    if scale is not None and scale.ndim:
        experts = (
            [part if part is None else part[e] for part in stored] for e in range(scale.size)
        )
        return mx.stack([dequantised(e, entry, s) for e, s in zip(experts, scale, strict=True)])
    weight, scales, biases = stored
    assert weight is not None and scales is not None
    how = (entry["group_size"], entry["bits"], entry.get("mode", "affine"))
    return mx.dequantize(weight, scales, biases, *how, scale, dtype=mx.float32)

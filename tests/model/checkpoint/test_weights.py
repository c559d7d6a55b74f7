"""Weights reach the target exactly as the files hold them, or not at all."""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx_lm.models.gemma4_text import Model

from sapwood.model.checkpoint.config_file import read_target_config
from sapwood.model.checkpoint.files import ModelDirectory, ModelRefused
from sapwood.model.checkpoint.safetensors import weight_files
from sapwood.model.checkpoint.weights import (
    DTYPE_NAMES,
    arrays,
    resolve_dtype,
)
from tests.model.reference import (
    FAMILIES,
    NAMES,
    PROMPTS,
    checkpoint,
    copied,
    edit,
    golden,
    load_target,
    logits,
    parameters,
    target,
    target_config,
)

_Tensors = dict[str, mx.array]


def _tensors(name: str) -> _Tensors:
    loaded = mx.load(str(checkpoint(name).path / "model.safetensors"))
    assert isinstance(loaded, dict)
    return loaded


def _load(directory: ModelDirectory, dtype: mx.Dtype | None = mx.float32) -> Model:
    return load_target(weight_files(directory), read_target_config(directory), dtype)


def _with(name: str, place: Path, change: Callable[[_Tensors], _Tensors]) -> ModelDirectory:
    """The checkpoint with its tensors changed."""
    directory = copied(name, place)
    mx.save_safetensors(str(directory.path / "model.safetensors"), change(_tensors(name)))
    return directory


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_logits_equal_the_reference(name: str, prompt: int) -> None:
    expected = golden(name)[f"p{prompt}_logits"]
    np.testing.assert_allclose(
        logits(target(name), golden(name)[f"p{prompt}_ids"]), expected, rtol=0, atol=1e-4
    )


def test_k_v_weights_of_borrowing_layers_are_dropped() -> None:
    held = parameters(target("e2b-tiny"))
    inner = "layers.4.self_attn.k_proj.weight"
    assert f"model.language_model.{inner}" in _tensors("e2b-tiny")
    assert f"model.{inner}" not in held
    assert "model.layers.2.self_attn.k_proj.weight" in held


def _bare(tensors: _Tensors) -> _Tensors:
    return {k.replace("model.language_model.", "model."): v for k, v in tensors.items()}


def _mlx_community(tensors: _Tensors) -> _Tensors:
    """The layout of mlx's conversions: prefixes swapped, experts split in three."""
    renamed: _Tensors = {}
    for name, array in tensors.items():
        inner = name.replace("model.language_model.", "language_model.model.")
        if inner.endswith("experts.gate_up_proj"):
            stem = inner.removesuffix("gate_up_proj")
            gate, up = mx.split(array, 2, axis=-2)
            renamed[f"{stem}switch_glu.gate_proj.weight"] = mx.contiguous(gate)
            renamed[f"{stem}switch_glu.up_proj.weight"] = mx.contiguous(up)
        elif inner.endswith("experts.down_proj"):
            stem = inner.removesuffix("down_proj")
            renamed[f"{stem}switch_glu.down_proj.weight"] = array
        else:
            renamed[inner] = array
    return renamed


@pytest.mark.parametrize("layout", [_bare, _mlx_community])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_layout_gives_the_same_parameters(
    name: str, layout: Callable[[_Tensors], _Tensors], tmp_path: Path
) -> None:
    loaded = _load(_with(name, tmp_path, layout))
    _assert_same(loaded, target(name))


def _assert_same(one: nn.Module, other: nn.Module) -> None:
    first, second = parameters(one), parameters(other)
    assert first.keys() == second.keys()
    assert all(mx.array_equal(first[k], second[k]) for k in first)


def test_shards_give_the_same_parameters(tmp_path: Path) -> None:
    directory = copied("e2b-tiny", tmp_path)
    tensors = _tensors("e2b-tiny")
    weight_map: dict[str, str] = {}
    for shard in range(2):
        part = {k: v for i, (k, v) in enumerate(sorted(tensors.items())) if i % 2 == shard}
        file = f"model-{shard + 1:05}-of-00002.safetensors"
        mx.save_safetensors(str(directory.path / file), part)
        weight_map |= dict.fromkeys(part, file)
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (directory.path / "model.safetensors.index.json").write_text(index)
    _assert_same(_load(directory), target("e2b-tiny"))


_TOWERS = {
    "e2b-tiny": {"audio_tower", "embed_audio", "embed_vision", "vision_tower"},
    "e4b-tiny": {"audio_tower", "embed_audio", "embed_vision", "vision_tower"},
    "12b-tiny": {"embed_audio", "embed_vision", "vision_embedder"},
    "a4b-tiny": {"embed_vision", "vision_tower"},
    "31b-tiny": {"embed_vision", "vision_tower"},
}


@pytest.mark.parametrize("layout", [None, _mlx_community])
@pytest.mark.parametrize("name", FAMILIES)
def test_towers_are_left_out_with_one_line_that_names_them(
    name: str,
    layout: Callable[[_Tensors], _Tensors] | None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In the names that transformers saved, and in those of mlx's conversions."""
    directory = checkpoint(name) if layout is None else _with(name, tmp_path, layout)
    with caplog.at_level(logging.INFO, logger="sapwood.model.checkpoint.weights"):
        loaded = _load(directory)
    (record,) = caplog.records
    inner = [tensor.removeprefix("model.") for tensor in _tensors(name)]
    towers = Counter(tensor.partition(".")[0] for tensor in inner)
    del towers["language_model"]
    assert set(towers) == _TOWERS[name]
    listed = ", ".join(f"{tower} {count}" for tower, count in sorted(towers.items()))
    assert record.getMessage() == f"left out {sum(towers.values())} tensors of media: {listed}"
    assert not [held for held in parameters(loaded) if any(t in held for t in towers)]


def test_a_text_only_checkpoint_leaves_nothing_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = _with(
        "e2b-tiny", tmp_path, lambda t: {k: v for k, v in t.items() if "language_model" in k}
    )
    with caplog.at_level(logging.INFO, logger="sapwood.model.checkpoint.weights"):
        loaded = _load(text)
    assert not caplog.records
    _assert_same(loaded, target("e2b-tiny"))


_UP = "model.language_model.layers.3.mlp.up_proj.weight"
_GATE_UP = "model.language_model.layers.0.experts.gate_up_proj"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "e2b-tiny",
            lambda t: {k: v for k, v in t.items() if k != _UP},
            r"model\.safetensors: model\.layers\.3\.\S+ is missing, .*\[128, 128\], found none",
        ),
        (
            "e2b-tiny",
            lambda t: t | {_UP: mx.zeros((128, 64))},
            r"model\.safetensors: \S+up_proj\.weight .* is \[128, 128\], found \[128, 64\]",
        ),
        (
            "e2b-tiny",
            lambda t: t | {_UP: mx.zeros((128, 128), mx.int32)},
            r"model\.safetensors: .*up_proj\.weight .*float32, found .*int32",
        ),
        (
            "e2b-tiny",
            lambda t: t | {f"{_UP}_scale": mx.zeros((1,))},
            r"model\.safetensors: .*up_proj\.weight_scale is not called for",
        ),
        (
            "e2b-tiny",
            lambda t: t | {_UP.replace("model.language_model", "model"): t[_UP]},
            r"a second time",
        ),
        (
            "a4b-tiny",
            lambda t: t | {_GATE_UP: mx.zeros((4, 127, 64))},
            r"gate_up_proj of shape \[4, 127, 64\] cannot be split",
        ),
        (
            "a4b-tiny",
            lambda t: t | {_GATE_UP: mx.zeros((4, 64, 64))},
            r"gate_up_proj .*\[4, 64, 64\], found \[4, 32, 64\]",
        ),
    ],
)
def test_weights_that_do_not_fit_the_config_are_refused(
    name: str, change: Callable[[_Tensors], _Tensors], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelRefused, match=message):
        _load(_with(name, tmp_path, change))


def _packing(path: str, module: nn.Module) -> bool | dict[str, int]:
    if path.endswith("router.proj"):
        return {"group_size": 64, "bits": 8}
    return hasattr(module, "to_quantized") and not path.endswith("layers.0.mlp.down_proj")


def test_a_quantised_conversion_loads_like_mlx_lm_quantises(tmp_path: Path) -> None:
    """4-bit, with the router at 8 bits and one path left plain, in mlx-community's layout."""
    expected = _load(checkpoint("a4b-tiny"))
    nn.quantize(expected, group_size=64, bits=4, class_predicate=_packing)
    packed = copied("a4b-tiny", tmp_path)
    weights = {f"language_model.{k}": v for k, v in parameters(expected).items()}
    mx.save_safetensors(str(packed.path / "model.safetensors"), weights)
    layers = range(target_config("a4b-tiny").text.own_layers)
    overrides = {f"language_model.model.layers.{i}.router.proj": 8 for i in layers}
    table: dict[str, Any] = {k: {"group_size": 64, "bits": b} for k, b in overrides.items()}
    table["language_model.model.layers.0.mlp.down_proj"] = False
    edit(packed, "config.json", {"quantization": {"group_size": 64, "bits": 4} | table})
    loaded = _load(packed)
    _assert_same(loaded, expected)
    ids = golden("a4b-tiny")["p0_ids"]
    np.testing.assert_array_equal(logits(loaded, ids), logits(expected, ids))


def test_packed_weights_without_a_quantisation_table_are_refused(tmp_path: Path) -> None:
    model = _load(checkpoint("a4b-tiny"))
    nn.quantize(model, group_size=64, bits=4)
    packed = copied("a4b-tiny", tmp_path)
    weights = parameters(model)
    mx.save_safetensors(str(packed.path / "model.safetensors"), weights)
    with pytest.raises(ModelRefused, match=r"found \["):
        _load(packed)


@pytest.mark.parametrize("name", NAMES)
def test_one_float_dtype_throughout(name: str) -> None:
    half = _load(checkpoint(name), mx.bfloat16)
    dtypes = {v.dtype for _, v in parameters(half).items()}
    assert dtypes == {mx.bfloat16}
    kept = _load(checkpoint(name), None)
    assert {v.dtype for _, v in parameters(kept).items()} == {mx.float32}
    assert half(mx.array([[2, 3]])).dtype == mx.bfloat16


def test_auto_means_float32_on_the_cpu_and_the_checkpoint_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.cpu)
    assert resolve_dtype("auto") == mx.float32
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    assert resolve_dtype("auto") is None
    assert [resolve_dtype(name) for name in DTYPE_NAMES[1:]] == [
        mx.float32,
        mx.bfloat16,
        mx.float16,
    ]
    with pytest.raises(ModelRefused, match="int8"):
        resolve_dtype("int8")


def test_everything_is_evaluated_when_the_load_returns() -> None:
    """An array left lazy belongs to the stream of the thread that made it."""
    made: list[Model] = []
    thread = threading.Thread(target=lambda: made.append(_load(checkpoint("e2b-tiny"))))
    thread.start()
    thread.join()
    ids = golden("e2b-tiny")["p0_ids"]
    np.testing.assert_array_equal(logits(made[0], ids), logits(target("e2b-tiny"), ids))


def test_bytes_count_every_array_once() -> None:
    model = target("a4b-tiny")
    in_parameters = sum(v.nbytes for v in parameters(model).values())
    frequencies = 2 * 32 * 4  # two full layers' rotary frequencies, which are no parameters
    assert sum(array.nbytes for array in arrays(model)) == in_parameters + frequencies
    assert len(arrays(model)) == len(parameters(model)) + 2

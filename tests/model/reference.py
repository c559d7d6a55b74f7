"""The committed reference pairs and what transformers says of them (fixtures/README.md)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models.gemma4_text import Model

from sapwood.model.assistant import Assistant, fill_assistant, fit_assistant
from sapwood.model.checkpoint.config import AssistantConfig, TargetConfig
from sapwood.model.checkpoint.config_file import read_assistant_config, read_target_config
from sapwood.model.checkpoint.files import ModelDirectory
from sapwood.model.checkpoint.safetensors import WeightFile, weight_files
from sapwood.model.checkpoint.weights import fit_target

FIXTURES = Path(__file__).parent.parent / "fixtures"
FAMILIES = ("e2b-tiny", "e4b-tiny", "12b-tiny", "a4b-tiny", "31b-tiny")
#: the two that have most features between them, for what need not be proven on every family
NAMES = ("e2b-tiny", "a4b-tiny")
PROMPTS = range(6)
DETAILED = (0, 3)  # the prompts with K/V, per-layer inputs and draft logits
VARIANTS = {"hf": 0, "pm1": 1}  # slots before the bonus token's, by name of the goldens
GAP_MIN = 1e-3  # a smaller gap between two logits may be noise

Array = npt.NDArray[Any]


def load_target(
    files: tuple[WeightFile, ...], config: TargetConfig, dtype: mx.Dtype | None
) -> Model:
    return fit_target(files, config).load(dtype)


def load_assistant(
    files: tuple[WeightFile, ...], config: AssistantConfig, dtype: mx.Dtype | None
) -> Assistant:
    return fill_assistant(fit_assistant(files, config), dtype)


def checkpoint(name: str) -> ModelDirectory:
    return ModelDirectory(FIXTURES / "ckpt" / name)


@cache
def golden(name: str) -> Mapping[str, Array]:
    with np.load(FIXTURES / "golden" / f"{name}.npz") as arrays:
        return dict(arrays)


@cache
def target_config(name: str) -> TargetConfig:
    return read_target_config(checkpoint(name))


@cache
def target(name: str) -> Model:
    return load_target(weight_files(checkpoint(name)), target_config(name), mx.float32)


@cache
def assistant(name: str) -> tuple[Assistant, AssistantConfig]:
    directory = checkpoint(f"{name}-assistant")
    config = read_assistant_config(directory)
    return load_assistant(weight_files(directory), config, mx.float32), config


def copied(name: str, place: Path, *, weights: bool = False) -> ModelDirectory:
    """A checkpoint that a test may damage; without its weights unless asked for."""
    left_out = None if weights else shutil.ignore_patterns("*.safetensors")
    shutil.copytree(FIXTURES / "ckpt" / name, place / name, ignore=left_out)
    return ModelDirectory(place / name)


def edit(directory: ModelDirectory, file: str, change: Mapping[str, Any]) -> None:
    """Replace keys of a JSON file; a dotted key reaches inside, the value `...` removes it."""
    path = directory.path / file
    document = json.loads(path.read_text())
    for dotted, value in change.items():
        *outer, key = dotted.split(".")
        place = document
        for step in outer:
            place = place[step]
        if value is ...:
            del place[key]
        else:
            place[key] = value
    path.write_text(json.dumps(document))


def logits(model: Any, ids: Array) -> Array:
    """[L, V] of a plain forward by mlx-lm's own code; its models share no type that is called."""
    return np.array(model(mx.array(ids)[None])[0])


def parameters(module: nn.Module) -> dict[str, mx.array]:
    flat = tree_flatten(module.parameters())
    assert isinstance(flat, list)
    return dict(flat)

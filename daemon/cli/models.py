"""`sapwood list` and `show`: the models on this machine, read off their files, nothing loaded.

- Listed is what the hub's cache has that `serve` could read: targets, drafters, bundles; marked is
  what is not whole.
- Shown is what one asks before serving: how large the weights are, and what a context takes beside
  them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from sapwood.daemon.errors import StartError
from sapwood.daemon.sizes import format_bytes
from sapwood.model.checkpoint.bundle import read_manifest
from sapwood.model.checkpoint.config_file import read_assistant_config, read_target_config
from sapwood.model.checkpoint.files import ModelDirectory, ModelRefused
from sapwood.model.checkpoint.hub_cache import cached
from sapwood.model.checkpoint.locate import Located, find
from sapwood.model.checkpoint.safetensors import weight_files

_ITEM_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class ListedModel:
    """kind: target, drafter or bundle. lacks: why it cannot be served as it is, or nothing."""

    id: str
    kind: str
    family: str
    quantization: str
    bytes: int
    lacks: str


def run_list(arguments: argparse.Namespace) -> int:
    """Print what the hub's cache has that we read, by id."""
    found = sorted(_listed(), key=lambda model: model.id)
    if arguments.json:
        print(json.dumps([asdict(model) for model in found]))
        return 0
    width = max((len(model.id) for model in found), default=0)
    for model in found:
        told = f"{model.kind:8} {format_bytes(model.bytes):>10}  {model.quantization or 'plain'}"
        print(f"{model.id:{width}}  {told}{'  INCOMPLETE' if model.lacks else ''}")
    if not found:
        print("the hub's cache has no Gemma 4; `sapwood pull ID` fetches one")
    return 0


def _listed() -> Iterator[ListedModel]:
    from huggingface_hub import scan_cache_dir  # slow to import
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return
    for repository in repositories:
        newest = max(repository.revisions, key=lambda each: each.last_modified, default=None)
        if repository.repo_type == "model" and newest is not None:
            model = _recognised(repository.repo_id, newest.snapshot_path, newest.size_on_disk)
            if model is not None:
                yield model


def _recognised(hub_id: str, path: Path, size: int) -> ListedModel | None:
    """None for a model of another kind."""
    directory = ModelDirectory(path)
    try:
        if (manifest := read_manifest(path)) is not None:
            parts = manifest.parts.values()
            packed = ", ".join(part.quantization or "plain" for part in parts)
            return ListedModel(hub_id, "bundle", "", packed, size, _lacking(hub_id, False))
        config = read_target_config(directory)
    except ModelRefused:
        return _drafter(hub_id, directory, size)
    packed = str(config.quantization or "")
    return ListedModel(hub_id, "target", config.family, packed, size, _lacking(hub_id, False))


def _drafter(hub_id: str, directory: ModelDirectory, size: int) -> ListedModel | None:
    try:
        config = read_assistant_config(directory)
    except ModelRefused:
        return None
    packed = str(config.quantization or "")
    return ListedModel(hub_id, "drafter", "", packed, size, _lacking(hub_id, True))


def _lacking(hub_id: str, drafter: bool) -> str:
    try:
        cached(hub_id, None, drafter)
    except ModelRefused as error:
        return str(error)
    return ""


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """What a target is and takes. K/V by dtype: full layers keep a context, sliding ones a window.

    draft_weights_bytes: None where there is no drafter. Weights are those in the files.
    """

    family: str
    quantization: str
    layers: int
    context_tokens_max: int
    window_tokens: int
    vocabulary: int
    weights_bytes: int
    full_bytes_per_token: dict[str, int]
    window_bytes: dict[str, int]
    draft_quantization: str = ""
    draft_weights_bytes: int | None = None


def run_show(arguments: argparse.Namespace) -> int:
    """Print what a model is and what it takes. Raises StartError."""
    try:
        summary = _summary(find(arguments.model, arguments.draft))
    except ModelRefused as error:
        raise StartError(str(error)) from None
    if arguments.json:
        print(json.dumps(asdict(summary)))
    else:
        print("\n".join(f"{label:14}{text}" for label, text in _lines(summary)))
    return 0


def _summary(found: Located) -> ModelSummary:
    config = read_target_config(found.target)
    drafter = None if found.drafter is None else read_assistant_config(found.drafter)
    text, sizes = config.text, _ITEM_BYTES.items()
    per_token = {name: config.kv_bytes_per_token("sliding", size) for name, size in sizes}
    return ModelSummary(
        family=config.family,
        quantization=str(config.quantization or ""),
        layers=len(text.kinds),
        context_tokens_max=text.context_tokens_max,
        window_tokens=text.window_tokens,
        vocabulary=text.vocabulary,
        weights_bytes=_weights_bytes(found.target),
        full_bytes_per_token={
            name: config.kv_bytes_per_token("full", size) for name, size in sizes
        },
        window_bytes={name: text.window_tokens * size for name, size in per_token.items()},
        draft_quantization="" if drafter is None else str(drafter.quantization or ""),
        draft_weights_bytes=None if found.drafter is None else _weights_bytes(found.drafter),
    )


def _weights_bytes(directory: ModelDirectory) -> int:
    files = weight_files(directory)
    return sum(tensor.end - tensor.start for file in files for tensor in file.tensors)


def _lines(summary: ModelSummary) -> Iterator[tuple[str, str]]:
    yield "family", f"{summary.family}, {summary.quantization or 'not quantised'}"
    yield "layers", f"{summary.layers}, sliding window {summary.window_tokens} tokens"
    yield "context", f"{summary.context_tokens_max} tokens, vocabulary {summary.vocabulary}"
    yield "weights", f"{format_bytes(summary.weights_bytes)} in its files"
    for name in _ITEM_BYTES:
        thousand = format_bytes(1000 * summary.full_bytes_per_token[name])
        window = format_bytes(summary.window_bytes[name])
        yield f"K/V {name}", f"{thousand} for 1000 tokens, beside {window} for the window"
    if summary.draft_weights_bytes is None:
        yield "drafter", "none (--draft)"
    else:
        packed = summary.draft_quantization or "not quantised"
        yield "drafter", f"{packed}, {format_bytes(summary.draft_weights_bytes)}"

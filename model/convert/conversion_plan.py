"""What a conversion will write, known in full before the first byte: configs, shards, names.

- Everything that can be wrong with the sources is found here: headers, names and shapes, tokenizer,
  a drafter that does not fit.
- The layout is mlx-community's, which mlx-lm loads too: `language_model.` in front of a nested
  model's names, experts split in three, towers and unused K/V weights left out.
- A plan's digest names all that the result depends on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlx import nn

from sapwood.model.assistant import fit_assistant
from sapwood.model.checkpoint.bundle import Part
from sapwood.model.checkpoint.config import Quantization, TargetConfig
from sapwood.model.checkpoint.config_file import read_assistant_config, read_target_config
from sapwood.model.checkpoint.files import ModelDirectory, ModelRefused
from sapwood.model.checkpoint.packing import most_common, packings
from sapwood.model.checkpoint.safetensors import TensorEntry, WeightFile, weight_files
from sapwood.model.checkpoint.weights import Fitted, coded, fit_target
from sapwood.model.convert.shards import Piece, Shard, lay_out
from sapwood.model.pair import check_fit
from sapwood.model.prompt.tokenizer_file import load_tokenizer

SHARD_BYTES_MAX = 4 << 30
DTYPE_CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_TOWERS = ("vision_config", "audio_config")


@dataclass(frozen=True, slots=True)
class Source:
    """One model to convert. name: for the manifest, never a path. packing None: as it is."""

    directory: ModelDirectory
    name: str
    packing: Quantization | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """dtype: of the weights that stay plain, None for their own. tool: the version that writes."""

    tool: str
    dtype: str | None = None
    shard_bytes_max: int = SHARD_BYTES_MAX


@dataclass(frozen=True, slots=True)
class PartPlan:
    """What becomes of one source. config: the text of its config.json."""

    source: Source
    part: Part
    config: str
    shards: tuple[Shard, ...]
    origin: tuple[object, ...]  # of what files, as they were found


@dataclass(frozen=True, slots=True)
class _Read:
    """One source as it was found.

    prefix: in front of the module's names in the bundle. codes: as checkpoint.weights.coded.
    """

    source: Source
    files: tuple[WeightFile, ...]
    document: dict[str, Any]
    prefix: str
    module: nn.Module
    codes: Mapping[str, str]
    origins: Mapping[str, TensorEntry]


def plan_conversion(
    target: Source, assistant: Source | None, settings: Settings
) -> dict[str, PartPlan]:
    """By part of the bundle. Raises ModelRefused."""
    config = read_target_config(target.directory)
    load_tokenizer(
        target.directory,
        config.text.vocabulary,
        config.eos_token_ids,
        config.bos_token_ids,
        config.media_token_ids,
    )
    draft_config = None if assistant is None else read_assistant_config(assistant.directory)
    if draft_config is not None:
        check_fit(config, draft_config)
    files = weight_files(target.directory)
    fitted = fit_target(files, config)
    document = _target_document(target.directory, config)
    prefix = "language_model." if "text_config" in document else ""
    found = {"target": _read(target, files, document, prefix, fitted)}
    if assistant is not None and draft_config is not None:
        files = weight_files(assistant.directory)
        drafter = fit_assistant(files, draft_config)
        document = assistant.directory.json("config.json")
        found["assistant"] = _read(assistant, files, document, "", drafter)
    return {name: _part_plan(read, settings) for name, read in found.items()}


def _read(
    source: Source,
    files: tuple[WeightFile, ...],
    document: dict[str, Any],
    prefix: str,
    fitted: Fitted[Any],
) -> _Read:
    module: nn.Module = fitted.module
    return _Read(source, files, document, prefix, module, dict(coded(module)), fitted.origins)


def digest_of(parts: Mapping[str, PartPlan], settings: Settings) -> str:
    """Hex; another one where sources, settings or versions differ."""
    told = [repr(settings)]
    for name, plan in parts.items():
        told += [name, plan.source.name, plan.config, repr(plan.origin)]
        told.append(repr(plan.source.packing))
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def _target_document(directory: ModelDirectory, config: TargetConfig) -> dict[str, Any]:
    """The target's config.json as mlx-lm needs it: it reads fewer keys than transformers writes."""
    document = {k: v for k, v in directory.json("config.json").items() if k not in _TOWERS}
    text = document.get("text_config", document)
    text["global_head_dim"] = config.text.full_head_dim
    text["num_global_key_value_heads"] = config.text.full_kv_heads
    text["layer_types"] = [f"{kind}_attention" for kind in config.text.kinds]
    document["vocab_size"] = config.text.vocabulary
    return document


def _part_plan(read: _Read, settings: Settings) -> PartPlan:
    source, where = read.source, read.source.directory.path
    already = most_common(read.module, packings(read.module, None))
    if source.packing is not None and already is not None:
        raise ModelRefused(f"{where}: is quantised already ({already}); quantise the original")
    chosen = packings(read.module, source.packing)
    main = most_common(read.module, chosen)
    if source.packing is not None and main is None:
        size = source.packing.group_size
        raise ModelRefused(f"{where}: no layer's rows divide into groups of {size}")
    # In order of names: how the source is cut into files changes no byte.
    origins = sorted(read.origins.items())
    pieces = [_piece(read, name, origin, settings, chosen) for name, origin in origins]
    stored = {piece.dtype for piece in pieces}
    dtype = " and ".join(name for name, code in DTYPE_CODES.items() if code in stored)
    part = Part(source.name, "" if main is None else str(main), dtype)
    config = json.dumps(_stored_document(read, main, chosen, settings), indent=2) + "\n"
    origin = tuple(
        (f.name, f.size, hashlib.sha256(f.header).hexdigest(), f.path.stat().st_mtime_ns)
        for f in read.files
    )
    return PartPlan(source, part, config, lay_out(pieces, settings.shard_bytes_max), origin)


def _piece(
    read: _Read,
    name: str,
    origin: TensorEntry,
    settings: Settings,
    chosen: Mapping[str, Quantization | None],
) -> Piece:
    file = next(f for f in read.files if f.where == origin.file)
    half = None
    if origin.name.endswith(".gate_up_proj"):
        half = 0 if name.endswith(".gate_proj.weight") else 1
    floats = origin.dtype in DTYPE_CODES.values() and settings.dtype is not None
    # What the source holds packed is no float, or scales and biases: `chosen` names those layers
    # too, and they are taken as they are.
    fresh = origin.dtype in DTYPE_CODES.values() and name.endswith(".weight")
    return Piece(
        name=f"{read.prefix}{name}",
        source=origin,
        path=file.path,
        start=8 + len(file.header) + origin.start,
        half=half,
        dtype=DTYPE_CODES[settings.dtype] if floats and settings.dtype else origin.dtype,
        packing=chosen.get(name.removesuffix(".weight")) if fresh else None,
        code=read.codes.get(name),
    )


def _stored_document(
    read: _Read,
    main: Quantization | None,
    chosen: Mapping[str, Quantization | None],
    settings: Settings,
) -> dict[str, Any]:
    document = _unpacked(read.document)
    if "text_config" in document:
        document["text_config"] = _unpacked(document["text_config"])
    if settings.dtype is not None:
        for place in (document, document.get("text_config", {})):
            place |= {key: settings.dtype for key in ("dtype", "torch_dtype") if key in place}
    if main is not None:
        table = _entry(main) | {
            f"{read.prefix}{path}": _entry(packing)
            for path, packing in chosen.items()
            if packing is not None and _entry(packing) != _entry(main)
        }
        # Twice, as mlx-lm writes it: the hub reads the second.
        document |= {"quantization": table, "quantization_config": table}
    return document


def _unpacked(document: Mapping[str, Any]) -> dict[str, Any]:
    """Without what says how its weights are packed."""
    return {k: v for k, v in document.items() if not k.startswith("quantization")}


def _entry(packing: Quantization) -> dict[str, Any]:
    return {"group_size": packing.group_size, "bits": packing.bits, "mode": packing.mode}

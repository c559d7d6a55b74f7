"""From checkpoints in Hugging Face layout to one bundle, in memory that no model outgrows.

- Nothing is written before the sources are proven (model.recipe).
- Shards are what takes long: each is journalled when it is finished, and kept by a later run. The
  small files are written anew, config.json and the manifest last.
- The same sources, settings and versions give the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from model.bundle import MANIFEST, FileRecord, Manifest
from model.files import ModelRefused
from model.recipe import PartRecipe, Settings, Source, digest_of, recipes
from model.safetensors import INDEX
from model.shards import Shard, write_shard
from model.workshop import Workshop, open_workshop

_COPIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "LICENSE",
    "NOTICE",
)

#: (file under way, source bytes done, source bytes in all)
Report = Callable[[str, int, int], object]


def convert(
    target: Source,
    assistant: Source | None,
    destination: Path,
    settings: Settings,
    report: Report = lambda file, done, total: None,
) -> Manifest:
    """Make the bundle at `destination`, or go on with it.

    Raises ModelRefused, and OSError of the file system; what was finished is kept for another run.
    """
    parts = recipes(target, assistant, settings)
    with open_workshop(destination, digest_of(parts, settings)) as shop:
        files = _write_shards(shop, parts, report)
        for name, recipe in parts.items():
            files |= _write_texts(shop, name, recipe)
        manifest = Manifest(settings.tool, {name: r.part for name, r in parts.items()}, files)
        _write_text(shop, MANIFEST, manifest.text())
        shop.publish()
    return manifest


def _write_shards(
    shop: Workshop, parts: Mapping[str, PartRecipe], report: Report
) -> dict[str, FileRecord]:
    shards = {f"{part}/{s.name}": s for part, recipe in parts.items() for s in recipe.shards}
    left = {name: shard for name, shard in shards.items() if name not in shop.finished}
    needed, free = sum(s.bytes for s in left.values()), shutil.disk_usage(shop.folder).free
    if needed > free:
        raise ModelRefused(f"{shop.folder}: {needed} bytes are to be written, {free} are free")
    total = sum(shard.source_bytes for shard in shards.values())
    done = total - sum(shard.source_bytes for shard in left.values())
    for name, shard in left.items():
        report(name, done, total)
        shop.write(name, _filling(shard, name, done, total, report), journal=True)
        done += shard.source_bytes
    report("", done, total)
    return {name: shop.finished[name] for name in shards}


def _write_texts(shop: Workshop, part: str, recipe: PartRecipe) -> dict[str, FileRecord]:
    """The part's small files, config.json last: without it nothing takes the folder for a model."""
    made: dict[str, FileRecord] = {}
    directory = recipe.source.directory
    for name in filter(directory.has, _COPIED):
        with directory.file(name).open("rb") as source:
            made[name] = shop.write(f"{part}/{name}", _copying(source))
    if len(recipe.shards) > 1:
        made[INDEX] = _write_text(shop, f"{part}/{INDEX}", _index(recipe))
    made["config.json"] = _write_text(shop, f"{part}/config.json", recipe.config)
    return {f"{part}/{name}": record for name, record in made.items()}


def _index(recipe: PartRecipe) -> str:
    placed = {tensor.name: s.name for s in recipe.shards for tensor in s.tensors}
    size = sum(shard.bytes for shard in recipe.shards)
    document = {"metadata": {"total_size": size}, "weight_map": dict(sorted(placed.items()))}
    return json.dumps(document, indent=2) + "\n"


def _filling(
    shard: Shard, name: str, done: int, total: int, report: Report
) -> Callable[[BinaryIO], object]:
    def advance(count: int) -> None:
        nonlocal done
        done += count
        report(name, done, total)

    return lambda file: write_shard(file, shard, advance)


def _copying(source: BinaryIO) -> Callable[[BinaryIO], object]:
    return lambda file: shutil.copyfileobj(source, file)


def _write_text(shop: Workshop, name: str, text: str) -> FileRecord:
    return shop.write(name, lambda file: file.write(text.encode()))

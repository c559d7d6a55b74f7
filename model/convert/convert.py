"""From checkpoints in Hugging Face layout to one bundle, in memory that no model outgrows.

- Nothing is written before the sources are proven (conversion_plan).
- Shards are what takes long: each is journalled when it is finished, and kept by a later run. The
  small files are written anew, config.json and the manifest last.
- The same sources, settings and versions give the same bytes.
- What packing took from each weight is journalled with its shard: a run that goes on tells all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from sapwood.model.checkpoint.bundle import MANIFEST, FileRecord, Manifest
from sapwood.model.checkpoint.files import TEMPLATES, ModelDirectory, ModelRefused
from sapwood.model.checkpoint.safetensors import INDEX
from sapwood.model.convert.conversion_plan import (
    PartPlan,
    Settings,
    Source,
    digest_of,
    plan_conversion,
)
from sapwood.model.convert.loss import PackingLoss
from sapwood.model.convert.shards import Shard, write_shard
from sapwood.model.convert.staging import StagingFolder, open_staging

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
ProgressReport = Callable[[str, int, int], object]


@dataclass(frozen=True, slots=True)
class Converted:
    """A bundle that was made. losses: by part, of each weight that this conversion packed."""

    manifest: Manifest
    losses: Mapping[str, tuple[PackingLoss, ...]]


def convert(
    target: Source,
    assistant: Source | None,
    destination: Path,
    settings: Settings,
    report: ProgressReport = lambda file, done, total: None,
) -> Converted:
    """Make the bundle at `destination`, or go on with it.

    Raises ModelRefused, and OSError of the file system; what was finished is kept for another run.
    """
    parts = plan_conversion(target, assistant, settings)
    with open_staging(destination, digest_of(parts, settings)) as staging:
        files = _write_shards(staging, parts, report)
        for name, plan in parts.items():
            files |= _write_texts(staging, name, plan)
        manifest = Manifest(settings.tool, {name: plan.part for name, plan in parts.items()}, files)
        _write_text(staging, MANIFEST, manifest.text())
        staging.publish()
        return Converted(manifest, {name: _losses(staging, name, parts[name]) for name in parts})


def _losses(staging: StagingFolder, part: str, plan: PartPlan) -> tuple[PackingLoss, ...]:
    told = [staging.told[f"{part}/{shard.name}"] for shard in plan.shards]
    return tuple(PackingLoss(**loss) for losses in told for loss in losses)


def _write_shards(
    staging: StagingFolder, parts: Mapping[str, PartPlan], report: ProgressReport
) -> dict[str, FileRecord]:
    shards = {f"{part}/{s.name}": s for part, plan in parts.items() for s in plan.shards}
    left = {name: shard for name, shard in shards.items() if name not in staging.finished}
    needed, free = sum(s.bytes for s in left.values()), shutil.disk_usage(staging.folder).free
    if needed > free:
        raise ModelRefused(f"{staging.folder}: {needed} bytes are to be written, {free} are free")
    total = sum(shard.source_bytes for shard in shards.values())
    done = total - sum(shard.source_bytes for shard in left.values())
    for name, shard in left.items():
        report(name, done, total)
        staging.write(name, _filling(shard, name, done, total, report), journal=True)
        done += shard.source_bytes
    report("", done, total)
    return {name: staging.finished[name] for name in shards}


def _write_texts(staging: StagingFolder, part: str, plan: PartPlan) -> dict[str, FileRecord]:
    """The part's small files, config.json last: without it nothing takes the folder for a model."""
    made: dict[str, FileRecord] = {}
    directory = plan.source.directory
    for name, path in _copied(directory).items():
        with path.open("rb") as source:
            made[name] = staging.write(f"{part}/{name}", _copying(source))
    if len(plan.shards) > 1:
        made[INDEX] = _write_text(staging, f"{part}/{INDEX}", _index(plan))
    made["config.json"] = _write_text(staging, f"{part}/config.json", plan.config)
    return {f"{part}/{name}": record for name, record in made.items()}


def _copied(directory: ModelDirectory) -> dict[str, Path]:
    """What is taken over as it is, by its name in the part."""
    found = {name: directory.file(name) for name in filter(directory.has, _COPIED)}
    folder = directory.folder(TEMPLATES)
    if folder is not None:
        names = sorted(path.name for path in folder.path.glob("*.jinja"))
        found |= {f"{TEMPLATES}/{name}": folder.file(name) for name in names}
    return found


def _index(plan: PartPlan) -> str:
    placed = {tensor.name: s.name for s in plan.shards for tensor in s.tensors}
    size = sum(shard.bytes for shard in plan.shards)
    document = {"metadata": {"total_size": size}, "weight_map": dict(sorted(placed.items()))}
    return json.dumps(document, indent=2) + "\n"


def _filling(
    shard: Shard, name: str, done: int, total: int, report: ProgressReport
) -> Callable[[BinaryIO], object]:
    def advance(count: int) -> None:
        nonlocal done
        done += count
        report(name, done, total)

    return lambda file: [asdict(loss) for loss in write_shard(file, shard, advance)]


def _copying(source: BinaryIO) -> Callable[[BinaryIO], object]:
    return lambda file: shutil.copyfileobj(source, file)


def _write_text(staging: StagingFolder, name: str, text: str) -> FileRecord:
    return staging.write(name, lambda file: file.write(text.encode()))

"""Conversions of small random pairs, for the tests of bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sapwood.model.checkpoint.bundle import Manifest
from sapwood.model.checkpoint.packing import parse_packing
from sapwood.model.convert.conversion_plan import Settings, Source
from sapwood.model.convert.convert import ProgressReport, convert
from tests.model.packs import Directories

SHARD_BYTES = 100_000


def bundle(
    pair: Directories,
    place: Path,
    packing: str | None = "4bit",
    draft_packing: str | None = None,
    report: ProgressReport = lambda file, done, total: None,
    **settings: Any,
) -> Manifest:
    """The pair as one bundle at `place`, in several shards."""
    sources = [
        Source(directory, directory.path.name, parse_packing(how, None) if how else None)
        for directory, how in zip(pair, (packing, draft_packing), strict=True)
    ]
    chosen: dict[str, Any] = {"tool": "test", "shard_bytes_max": SHARD_BYTES} | settings
    return convert(sources[0], sources[1], place, Settings(**chosen), report).manifest


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path in it."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}

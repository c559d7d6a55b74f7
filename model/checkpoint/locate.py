"""Which directories `--model` and `--draft` mean.

- A value is a directory if one of that name exists, else a hub id (`org/name`, or
  `org/name@revision`), looked up in the hub's local cache only: a daemon downloads nothing.
- Neither given: the bundled demo pair. A model alone: the bundle's own drafter, if it holds one
  (`assistant/` in the directory, or beside `target/`). `--draft none`: no drafter.
- A bundle with a manifest is whole, or refused: the sizes of its files are checked here.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from sapwood.model.checkpoint.bundle import Manifest, check_sizes, read_manifest
from sapwood.model.checkpoint.files import ModelDirectory, ModelRefused
from sapwood.model.checkpoint.safetensors import weight_names

DEMO = Path(__file__).parents[1] / "demo"
_NAME = r"[A-Za-z0-9][\w.-]{0,95}"
_REVISION = r"(?!.*\.\.)[A-Za-z0-9][\w./-]{0,95}"
_HUB_ID = re.compile(f"({_NAME}/{_NAME})(?:@({_REVISION}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Located:
    """Directories to load, and what is known of where they lie."""

    target: ModelDirectory
    drafter: ModelDirectory | None
    path: Path  # what `--model` names: the bundle's, or the target's own
    manifest: Manifest | None


def locate(model: str | None, draft: str | None) -> tuple[ModelDirectory, ModelDirectory | None]:
    """The target's directory and the drafter's, if any. Raises ModelRefused."""
    found = find(model, draft)
    return found.target, found.drafter


def find(model: str | None, draft: str | None) -> Located:
    """What `locate` finds, with the bundle's manifest. Raises ModelRefused."""
    path = DEMO if model is None else _directory(model)
    manifest = read_manifest(path)
    if manifest is not None:
        check_sizes(path, manifest)
    whole = os.path.isfile(path / "target" / "config.json")
    target = ModelDirectory(path / "target" if whole else path)
    if draft is not None:
        given = None if draft == "none" else ModelDirectory(_directory(draft))
        return Located(target, given, path, manifest)
    assistant = path / "assistant"
    bundled = ModelDirectory(assistant) if os.path.isfile(assistant / "config.json") else None
    return Located(target, bundled, path, manifest)


def source_name(value: str | None, directory: ModelDirectory) -> str:
    """A name for where a model came from, that tells nothing of this machine's folders."""
    if value is None:
        return "sapwood-demo"
    real = directory.path.resolve()
    snapshot = next((p for p in (real, real.parent) if p.parent.name == "snapshots"), None)
    if snapshot is None:
        return Path(value).resolve().name
    home = snapshot.parent.parent.name
    return f"{home.removeprefix('models--').replace('--', '/')}@{snapshot.name}"


def _directory(value: str) -> Path:
    path = Path(value)
    # os.path's own answer False where pathlib's raise: a name too long, a folder barred to us.
    if value and os.path.isdir(value):
        return path
    if value and os.path.exists(value):
        raise ModelRefused(f"{value}: is a file, expected a directory in Hugging Face layout")
    match = _HUB_ID.fullmatch(value)
    if match is None:
        raise ModelRefused(f"{value}: neither a directory nor a hub id like google/gemma-4-E2B-it")
    return _cached(match[1], match[2])


def _cached(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download  # slow to import, and rarely needed
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    name = f"{hub_id}@{revision}" if revision else hub_id
    fetch = f"hf download {hub_id}" + (f" --revision {revision}" if revision else "")
    try:
        # The pattern keeps the hub's own check to one file: what else a model needs is known here.
        found = snapshot_download(
            hub_id, revision=revision, local_files_only=True, allow_patterns="config.json"
        )
    except HFValidationError:
        raise ModelRefused(f"{name}: neither a directory nor a hub id") from None
    except (LocalEntryNotFoundError, FileNotFoundError):
        raise ModelRefused(
            f"{name}: not in the hub's local cache; fetch it first with `{fetch}`"
        ) from None
    path = Path(found)
    lacking = _lacking(path)
    if lacking is not None:
        raise ModelRefused(
            f"{name}: incomplete in the hub's local cache, {lacking} is missing; "
            f"fetch it whole with `{fetch}`"
        )
    return path


def _lacking(path: Path) -> str | None:
    """The first file that a snapshot lacks: a download may have ended early."""
    if (path / "target").is_dir():  # a bundle: its manifest tells
        return None
    home = ModelDirectory(path)
    needed = ["config.json", *sorted(weight_names(home))]
    # Through its link: a blob may be gone.
    return next((name for name in needed if not os.path.isfile(path / name)), None)

"""Which directories `--model` and `--draft` mean.

- A value is a directory if one of that name exists, else a hub id, which is looked up in the
  hub's local cache only: a daemon downloads nothing by itself.
- Neither given: the bundled demo pair. A model alone: the bundle's own drafter, if it holds one
  (`assistant/` in the directory, or beside `target/`). `--draft none`: no drafter.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from model.files import ModelDirectory, ModelRefused

DEMO = Path(__file__).parent / "demo"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def locate(model: str | None, draft: str | None) -> tuple[ModelDirectory, ModelDirectory | None]:
    """The target's directory and the drafter's, if any. Raises ModelRefused."""
    target, bundled = _bundle(DEMO if model is None else _directory(model))
    if draft is None:
        return target, bundled
    return target, None if draft == "none" else ModelDirectory(_directory(draft))


def _bundle(path: Path) -> tuple[ModelDirectory, ModelDirectory | None]:
    whole = os.path.isfile(path / "target" / "config.json")
    target = path / "target" if whole else path
    assistant = path / "assistant"
    drafter = ModelDirectory(assistant) if os.path.isfile(assistant / "config.json") else None
    return ModelDirectory(target), drafter


def _directory(value: str) -> Path:
    path = Path(value)
    # os.path's own answer False where pathlib's raise: a name too long, a folder barred to us.
    if value and os.path.isdir(value):
        return path
    if value and os.path.exists(value):
        raise ModelRefused(f"{value}: is a file, expected a directory in Hugging Face layout")
    if not _HUB_ID.fullmatch(value):
        raise ModelRefused(f"{value}: neither a directory nor a hub id like google/gemma-4-E2B-it")
    return _cached(value)


def _cached(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download  # slow to import, and rarely needed
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, local_files_only=True))
    except HFValidationError:
        raise ModelRefused(f"{hub_id}: neither a directory nor a hub id") from None
    except (LocalEntryNotFoundError, FileNotFoundError):
        raise ModelRefused(
            f"{hub_id}: not in the hub's local cache; fetch it first with `hf download {hub_id}`"
        ) from None

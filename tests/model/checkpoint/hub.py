"""The hub's local cache as huggingface_hub lays it out, without a network."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

REVISION = "0" * 40
# What a target's repository has that we read.
WHOLE = (
    *("config.json", "model.safetensors", "tokenizer.json"),
    *("tokenizer_config.json", "generation_config.json", "chat_template.jinja"),
)


def hub_snapshot(place: Path, revision: str = REVISION, files: Iterable[str] = ()) -> Path:
    """The snapshot of `a/b`, of links to blobs; `main` is the first that is made."""
    home = place / "models--a--b"
    for folder in ("refs", "blobs"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    if not (home / "refs" / "main").exists():
        (home / "refs" / "main").write_text(revision)
    snapshot = home / "snapshots" / revision
    snapshot.mkdir(parents=True)
    for index, name in enumerate(files):
        blob = home / "blobs" / f"{revision[:4]}{index}"
        blob.write_text("{}")
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(blob)
    return snapshot


def listing(snapshot: Path, files: Iterable[str]) -> None:
    """What huggingface_hub notes of a repository when it downloads a snapshot of it."""
    entries = {name: {"size": 2, "blob_id": "0" * 40} for name in files}
    path = snapshot.parents[1] / "trees" / f"{snapshot.name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"format_version": 1, "files": entries}))


def no_such_file(snapshot: Path, name: str) -> None:
    """What huggingface_hub notes when it asked for a file that the repository lacks."""
    path = snapshot.parents[1] / ".no_exist" / snapshot.name / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()

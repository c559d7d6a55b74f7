"""Reading a model directory: the operator's files, trusted only after they were checked.

- A file is named by a plain name, lies in its directory (or, for a snapshot of the hub's cache, in
  its repository's or the cache's blobs) and is a regular file: no path, no symlink leads elsewhere.
- Every read has a bound; JSON documents are objects without a key twice.
- What is wrong with a file is a ModelRefused: one sentence that names the file.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_TEXT_BYTES_MAX = 1 << 20
JSON_BYTES_MAX = 16 << 20


class ModelRefused(Exception):
    """A model that is not served: the operator's error, in one sentence."""


@dataclass(frozen=True, slots=True)
class ModelDirectory:
    """One directory in Hugging Face layout. `path` need not be resolved."""

    path: Path

    def has(self, name: str) -> bool:
        return (self.path / name).exists()

    def file(self, name: str) -> Path:
        """The resolved path of a regular file of this directory. Raises ModelRefused."""
        if not _PLAIN_NAME.fullmatch(name):
            raise ModelRefused(f"{self.path}: {name[:80]!r} is not a plain file name")
        try:
            real = (self.path / name).resolve(strict=True)
        except (OSError, RuntimeError):
            raise ModelRefused(f"{self.path / name}: no such file") from None
        if not any(real.is_relative_to(root) for root in self._roots()):
            raise ModelRefused(f"{self.path / name}: leads out of its directory, to {real}")
        if not real.is_file():
            raise ModelRefused(f"{self.path / name}: is not a regular file")
        return real

    def _roots(self) -> list[Path]:
        home = self.path.resolve()
        # A snapshot of the hub's cache, or a part of a bundle in one: the repository's blobs, which
        # link to the whole cache's where it shares equal files.
        for snapshot in (home, home.parent):
            repository = snapshot.parent.parent
            if snapshot.parent.name == "snapshots" and repository.name.startswith("models--"):
                return [home, repository / "blobs", repository.parent / "blobs"]
        return [home]

    def text(self, name: str, bytes_max: int = _TEXT_BYTES_MAX) -> str:
        path = self.file(name)
        size = path.stat().st_size
        if size > bytes_max:
            raise ModelRefused(f"{self.path / name}: {size} bytes, more than {bytes_max}")
        try:
            return path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            raise ModelRefused(f"{self.path / name}: is not UTF-8") from None

    def json(self, name: str, bytes_max: int = JSON_BYTES_MAX) -> dict[str, Any]:
        return parse_object(self.text(name, bytes_max), str(self.path / name))


def parse_object(text: str, where: str) -> dict[str, Any]:
    """A JSON object without duplicate keys. Raises ModelRefused naming `where`."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            raise ModelRefused(f"{where}: a key appears twice")
        return made

    try:
        document = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise ModelRefused(f"{where}: is not valid JSON") from None
    if not isinstance(document, dict):
        raise ModelRefused(f"{where}: is not a JSON object")
    return document

"""Reading a model directory: the operator's files, trusted only after they were checked.

- A file is named by a plain name, lies in its directory (or, for a snapshot of the hub's cache, in
  its repository's or the cache's blobs) and is a regular file: no path, no symlink leads elsewhere.
- Every read has a bound; JSON documents are objects without a key twice.
- What is wrong with a file is a ModelRefused: one printable line that names the file. What the file
  itself says is quoted cut short, so that no file writes to the operator's terminal.
"""

from __future__ import annotations

import json
import os
import re
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_TEXT_BYTES_MAX = 1 << 20
JSON_BYTES_MAX = 16 << 20
# The one folder whose files belong to a model, beside those of its own directory.
TEMPLATES = "additional_chat_templates"
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict = 2, 8, 4
_SHORT.maxstring, _SHORT.maxlong = 100, 40


class ModelRefused(Exception):
    """A model that is not served: the operator's error, in one sentence."""

    def __init__(self, sentence: str) -> None:
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in sentence))


def shown(value: object) -> str:
    """What a file says, for a message: its repr, cut where it is long or deep."""
    return _SHORT.repr(value)


@dataclass(frozen=True, slots=True)
class ModelDirectory:
    """One directory in Hugging Face layout. `path` need not be resolved."""

    path: Path

    def has(self, name: str) -> bool:
        """Whether there is an entry of that name: a link to nothing is one, and a broken file."""
        return os.path.lexists(self.path / name)

    def file(self, name: str) -> Path:
        """The resolved path of a regular file of this directory. Raises ModelRefused."""
        if not is_plain_name(name):
            raise ModelRefused(f"{self.path}: {shown(name)} is not a plain file name")
        try:
            real = (self.path / name).resolve(strict=True)
        except FileNotFoundError:
            raise ModelRefused(f"{self.path / name}: no such file") from None
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
            reason = getattr(error, "strerror", None) or "its links lead nowhere"
            raise ModelRefused(f"{self.path / name}: cannot be read: {reason}") from None
        if not any(real.is_relative_to(root) for root in self._roots()):
            raise ModelRefused(f"{self.path / name}: leads out of its directory, to {real}")
        if not real.is_file():
            raise ModelRefused(f"{self.path / name}: is not a regular file")
        return real

    def folder(self, name: str) -> ModelDirectory | None:
        """A folder in it; None where there is none. Raises ModelRefused for a link to one."""
        path = self.path / name
        if path.is_symlink():
            raise ModelRefused(f"{path}: is a link, expected a folder")
        return ModelDirectory(path) if path.is_dir() else None

    def _roots(self) -> list[Path]:
        home = self.path.resolve()
        # A snapshot of the hub's cache, or a part of a bundle in one, or a folder in that: the
        # repository's blobs, which link to the whole cache's where it shares equal files.
        for snapshot in (home, home.parent, home.parent.parent):
            repository = snapshot.parent.parent
            if snapshot.parent.name == "snapshots" and repository.name.startswith("models--"):
                return [home, repository / "blobs", repository.parent / "blobs"]
        return [home]

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """A regular file of this directory, to read. Raises ModelRefused, also while it is read."""
        path = self.file(name)
        try:
            with path.open("rb") as file:
                yield file
        except OSError as error:
            reason = error.strerror or "input/output error"
            raise ModelRefused(f"{self.path / name}: cannot be read: {reason}") from None

    def text(self, name: str, bytes_max: int = _TEXT_BYTES_MAX) -> str:
        """A whole UTF-8 file of up to `bytes_max` bytes. Raises ModelRefused."""
        with self.open(name) as file:
            content = file.read(bytes_max + 1)
        if len(content) > bytes_max:
            raise ModelRefused(f"{self.path / name}: more than the {bytes_max} bytes allowed")
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            raise ModelRefused(f"{self.path / name}: is not UTF-8") from None

    def json(self, name: str, bytes_max: int = JSON_BYTES_MAX) -> dict[str, Any]:
        """A JSON object of up to `bytes_max` bytes, no key twice. Raises ModelRefused."""
        return parse_object(self.text(name, bytes_max), str(self.path / name))


def is_plain_name(name: object) -> bool:
    """Whether it is a name that cannot lead anywhere: no separator, no leading dot."""
    return isinstance(name, str) and _PLAIN_NAME.fullmatch(name) is not None


def parse_object(text: str, where: str) -> dict[str, Any]:
    """A JSON object without duplicate keys. Raises ModelRefused naming `where`."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key, value in pairs:
            if key in made:
                raise ModelRefused(f"{where}: the key {shown(key)} appears twice")
            made[key] = value
        return made

    try:
        document = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise ModelRefused(f"{where}: is not valid JSON ({place})") from None
    except (ValueError, RecursionError):
        raise ModelRefused(
            f"{where}: its JSON is nested too deep or has a number too long"
        ) from None
    if not isinstance(document, dict):
        raise ModelRefused(f"{where}: is not a JSON object")
    return document

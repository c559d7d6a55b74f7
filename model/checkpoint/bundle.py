"""A bundle: one directory with a target, its drafter, and a manifest of every file.

- `target/` and, where there is a drafter, `assistant/`, each in Hugging Face layout, and
  `sapwood.json` beside them. A bundle without a manifest (laid out by hand) is taken as it is.
- Sizes are checked whenever a bundle is used, digests only by `check`: 16 GB take minutes to read.
- A file that the manifest does not name is refused too: it could be read instead of a named one.
- Names in a manifest are `part/plain-name`, of further chat templates
  `part/additional_chat_templates/plain-name`; nothing in it can lead elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sapwood.model.checkpoint.files import TEMPLATES, ModelDirectory, ModelRefused

MANIFEST = "sapwood.json"
PARTS = ("target", "assistant")
_FORMAT = 1
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file of a bundle as it was written. sha256: in hex."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Part:
    """Where a target or drafter came from, and how it is stored. source: never a path."""

    source: str
    quantization: str  # "" = none
    dtype: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle holds: parts by name of PARTS, files by `part/name`. tool: who wrote it."""

    tool: str
    parts: Mapping[str, Part]
    files: Mapping[str, FileRecord]

    @property
    def bytes(self) -> int:
        """Of all files together, the manifest itself left out."""
        return sum(record.bytes for record in self.files.values())

    def text(self) -> str:
        """As it is written to a file."""
        document = {
            "format": _FORMAT,
            "tool": self.tool,
            "parts": {name: asdict(part) for name, part in self.parts.items()},
            "files": {name: asdict(record) for name, record in sorted(self.files.items())},
        }
        return json.dumps(document, indent=2) + "\n"


def read_manifest(path: Path) -> Manifest | None:
    """The manifest of the bundle at `path`; None where it has none. Raises ModelRefused."""
    bundle = ModelDirectory(path)
    if not bundle.has(MANIFEST):
        return None
    where, document = path / MANIFEST, bundle.json(MANIFEST)
    version = document.get("format")
    if type(version) is not int or version < 1:
        raise ModelRefused(f"{where}: format is {version!r}, not a number from 1 on")
    if version > _FORMAT:
        raise ModelRefused(
            f"{where}: the bundle is of format {version}, this version reads up to {_FORMAT}"
        )
    try:
        return _parsed(document)
    except (KeyError, TypeError, AttributeError, ValueError):
        raise ModelRefused(f"{where}: is not a bundle's manifest of format {version}") from None


def _parsed(document: Mapping[str, Any]) -> Manifest:
    parts = {name: Part(**part) for name, part in document["parts"].items()}
    files = {name: FileRecord(**record) for name, record in document["files"].items()}
    texts = [document["tool"], *(v for part in parts.values() for v in asdict(part).values())]
    texts += [record.sha256 for record in files.values()]
    sizes = [record.bytes for record in files.values()]
    if not all(isinstance(v, str) for v in texts) or not all(type(v) is int for v in sizes):
        raise TypeError
    owners = {name.split("/")[0] for name in files}
    if "target" not in parts or set(parts) - set(PARTS) or owners != set(parts):
        raise ValueError
    return Manifest(document["tool"], parts, files)


def check_sizes(path: Path, manifest: Manifest) -> None:
    """Every file is there, as long as it was written, and no other. Raises ModelRefused."""
    for name, record in manifest.files.items():
        found = _file(path, name).stat().st_size
        if found != record.bytes:
            raise ModelRefused(
                f"{path / name}: expected are {record.bytes} bytes, found are {found}: "
                "the bundle is not complete"
            )
    for folder in (path / part / inner for part in PARTS for inner in ("", TEMPLATES)):
        for file in sorted(folder.glob("[!.]*")):
            named = file.name == TEMPLATES and file.is_dir()  # by its files
            if not named and file.relative_to(path).as_posix() not in manifest.files:
                raise ModelRefused(f"{file}: is not in the bundle's manifest")


def check_digests(path: Path, manifest: Manifest, report: Callable[[int], object]) -> None:
    """Read every file whole and compare. report(bytes) as they are read. Raises ModelRefused."""
    for name, record in manifest.files.items():
        found = digest(_file(path, name), report)
        if found != record.sha256:
            raise ModelRefused(
                f"{path / name}: expected is sha256 {record.sha256[:16]}…, found {found[:16]}…: "
                "the file was changed or damaged"
            )


def digest(path: Path, report: Callable[[int], object] = lambda count: None) -> str:
    """A file's sha256 in hex."""
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            hashed.update(block)
            report(len(block))
    return hashed.hexdigest()


def _file(path: Path, name: str) -> Path:
    part, _, plain = name.partition("/")
    if part not in PARTS:
        raise ModelRefused(f"{path / MANIFEST}: {name[:80]!r} is in no part of the bundle")
    home = ModelDirectory(path / part)
    if plain.startswith(f"{TEMPLATES}/"):
        home = home.folder(TEMPLATES) or ModelDirectory(home.path / TEMPLATES)
        plain = plain.removeprefix(f"{TEMPLATES}/")
    return home.file(plain)

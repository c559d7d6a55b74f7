"""Where a bundle is made: a folder beside the destination, renamed to it when it is whole.

- `DST.partial/` holds `bundle/` and `journal.json`. A file of the journal is finished, durable and
  of the digest it says; everything else in `bundle/` may be half written.
- A run that was killed goes on: finished files are read again and kept where their digests hold,
  all others are dropped. A journal of other settings or sources is never continued.
- The destination appears by one rename, after every byte of it is on the disk, or not at all.
- One process at a time: the folder is locked for as long as it is open.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from sapwood.model.checkpoint.bundle import FileRecord, digest
from sapwood.model.checkpoint.files import ModelDirectory, ModelRefused

_JOURNAL = "journal.json"


@dataclass(slots=True)
class StagingFolder:
    """An open staging folder.

    finished: files of the bundle that need not be made again. told: what those that filled them
    had to say, in JSON's types.
    """

    destination: Path
    plan_digest: str
    finished: dict[str, FileRecord] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """`DST.partial`: on the destination's file system, so that a rename is enough."""
        return self.destination.with_name(f"{self.destination.name}.partial")

    @property
    def bundle(self) -> Path:
        """What becomes the destination; a file there may still be half written."""
        return self.folder / "bundle"

    def write(
        self, name: str, fill: Callable[[BinaryIO], object], *, journal: bool = False
    ) -> FileRecord:
        """Make one durable file of the bundle, under its name only once it is whole.

        journal: it is kept by a later run, and with it what `fill` returned.
        """
        path = self.bundle / name
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_name(f".{path.name}.half")
        with half.open("w+b") as file:
            told = fill(file)
            file.flush()
            os.fsync(file.fileno())
        record = FileRecord(half.stat().st_size, digest(half))
        half.rename(path)
        if journal:
            self.finished[name], self.told[name] = record, told
            self._write_journal()
        return record

    def publish(self) -> None:
        """Rename the bundle to its destination."""
        for folder in (*(p for p in self.bundle.rglob("*") if p.is_dir()), self.bundle):
            _sync(folder)
        _refuse_existing(self.destination)
        self.bundle.rename(self.destination)
        _sync(self.destination.parent)
        shutil.rmtree(self.folder)

    def _write_journal(self) -> None:
        finished = {name: asdict(record) for name, record in self.finished.items()}
        half = self.folder / f".{_JOURNAL}.half"
        with half.open("w") as file:
            document = {"plan": self.plan_digest, "finished": finished, "told": self.told}
            json.dump(document, file)
            file.flush()
            os.fsync(file.fileno())
        half.rename(self.folder / _JOURNAL)

    def _take_up(self) -> None:
        """Keep what an earlier run finished. Raises ModelRefused for what is not its folder."""
        if not (self.folder / _JOURNAL).exists():
            if any(self.folder.iterdir()):
                raise ModelRefused(
                    f"{self.folder}: is in the way; delete it or choose another name"
                )
            self._write_journal()
        document = ModelDirectory(self.folder).json(_JOURNAL)
        if document.get("plan") != self.plan_digest:
            raise ModelRefused(
                f"{self.folder}: holds an unfinished conversion of other sources or settings; "
                "delete it or choose another name"
            )
        self.bundle.mkdir(exist_ok=True)
        try:
            recorded = {k: FileRecord(**v) for k, v in document["finished"].items()}
            told = {name: document["told"][name] for name in recorded}
        except (KeyError, TypeError, AttributeError):
            raise ModelRefused(f"{self.folder / _JOURNAL}: is no conversion's journal") from None
        for name, record in recorded.items():
            path = self.bundle / name
            whole = path.is_file() and path.stat().st_size == record.bytes
            if whole and digest(path) == record.sha256:
                self.finished[name], self.told[name] = record, told[name]
        for path in [p for p in self.bundle.rglob("*") if p.is_file()]:
            if str(path.relative_to(self.bundle)) not in self.finished:
                path.unlink()
        self._write_journal()


@contextmanager
def open_staging(destination: Path, plan_digest: str) -> Iterator[StagingFolder]:
    """Open or continue the staging folder of `destination`; what is made stays after an error.

    plan_digest: of everything that the result depends on. Raises ModelRefused, and OSError of the
    file system.
    """
    _refuse_existing(destination)
    staging = StagingFolder(destination, plan_digest)
    staging.folder.mkdir(exist_ok=True)
    lock = os.open(staging.folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ModelRefused(f"{staging.folder}: another process converts there") from None
        staging._take_up()
        yield staging
    finally:
        os.close(lock)


def _refuse_existing(destination: Path) -> None:
    if destination.exists() or destination.is_symlink():
        raise ModelRefused(f"{destination}: exists already; a conversion makes a new directory")


def _sync(folder: Path) -> None:
    """Make a folder's names durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

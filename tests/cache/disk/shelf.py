"""A folder, its journal and a store over it, as tests drive them; and files of it by numbers."""

from __future__ import annotations

import hashlib
import queue
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from sapwood.cache.disk.block_file import BlockLayout, FileTensor, file_name
from sapwood.cache.disk.folder import Folder
from sapwood.cache.disk.store import RawGroup, RawReport, Store
from sapwood.cache.prefix.catalogue import HEAD_BYTES, DiskFile, Key, Kind
from sapwood.scheduler.disk import Erase, Erased, FilesFound, Read, ReadGroup, Written

LAYOUT = BlockLayout((FileTensor("kv", "F32", 4, (2, 4, 3)),))
SLIDING = BlockLayout((FileTensor("kv", "F32", 4, (4, 4, 3)),))
LAYOUTS: dict[Kind, BlockLayout] = {"full": LAYOUT, "sliding": SLIDING}
ROOM = 1 << 20
_T = TypeVar("_T")


def name(number: int) -> bytes:
    return hashlib.blake2b(b"%d" % number, digest_size=20).digest()


def disk_file(number: int, kind: Kind = "full") -> DiskFile:
    size = HEAD_BYTES + LAYOUTS[kind].nbytes
    return DiskFile(name(number), kind, name(number), name(number - 1), b"t", size)


def kv_of(number: int, kind: Kind = "full") -> bytes:
    """What lies in it: nobody else's."""
    seed = hashlib.sha256(b"%d %s" % (number, kind.encode())).digest()
    return (seed * LAYOUTS[kind].nbytes)[: LAYOUTS[kind].nbytes]


class Shelf:
    """A store and what it has reported."""

    def __init__(self, path: Path, bytes_max: int = ROOM, folder: Folder | None = None) -> None:
        self.folder = folder or Folder(path)
        self.reports: queue.Queue[RawReport] = queue.Queue()
        self.store = Store(self.folder, LAYOUTS, self.reports.put, bytes_max, 1000)
        self._reads = 0
        self.found: dict[Key, DiskFile] = {}
        while (report := self.next(FilesFound)).budget_bytes is None:
            self.found.update((file.key, file) for file in report.files)
        self.budget_bytes = report.budget_bytes

    def put(self, number: int, kind: Kind = "full", budget: int = 7) -> bool:
        """Whether it is on disk."""
        self.store.write(disk_file(number, kind), kv_of(number, kind), budget)
        return self.next(Written).whole

    def get(self, *numbers: int, kind: Kind = "full") -> RawGroup:
        """One group of these, without sliding K/V."""
        self._reads += 1
        files = tuple(disk_file(number, kind) for number in numbers)
        self.store.carry_out(Read(self._reads, (ReadGroup(0, 4 * len(files), files, ()),)))
        group = self.next(RawGroup)
        if group.kv is not None:
            self.store.taken()
        return group

    def erase(self, *numbers: int) -> int:
        """These, or all; how many are left."""
        return self.forget([disk_file(number) for number in numbers] or None)

    def forget(self, files: list[DiskFile] | None) -> int:
        """As who orders it: these files, or all, and what nobody knows of; how many are left."""
        self.store.carry_out(Erase(None if files is None else tuple(files), 1, aside=True))
        return self.next(Erased).left

    def next(self, kind: type[_T]) -> _T:
        """The next report of a kind; others are passed over."""
        deadline = time.monotonic() + 300  # of tests with as many files as there may be
        while True:
            report = self.reports.get(timeout=max(0.0, deadline - time.monotonic()))
            if isinstance(report, kind):
                return report

    def close(self) -> None:
        self.store.close(20.0)


@contextmanager
def shelf(path: Path, bytes_max: int = ROOM, folder: Folder | None = None) -> Iterator[Shelf]:
    opened = Shelf(path, bytes_max, folder)
    try:
        yield opened
    finally:
        opened.close()


def path_of(folder: Path, number: int, kind: Kind = "full") -> Path:
    return folder / file_name((name(number), kind))


def is_sound(opened: Shelf, number: int) -> bool:
    """What is found is what was written, or nothing: never anything else."""
    kv = opened.get(number).kv
    if kv is None:
        return False
    assert [bytes(block) for block in kv["full"]] == [kv_of(number)]
    return True


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())

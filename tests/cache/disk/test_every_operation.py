"""Whichever call of the disk fails, once or with all behind it: nothing wrong, and no lie.

- What is read is what was written, or nothing, at once and after a restart.
- Who was told that something is gone finds nothing of it anywhere in the folder: neither under its
  name, nor half written, nor put aside.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sapwood.cache.disk import folder as folder_module
from sapwood.cache.disk.store import Store
from sapwood.cache.prefix.catalogue import DiskFile, Key
from sapwood.scheduler.disk import DiskOrder, Erase
from tests.cache.disk.shelf import (
    Shelf,
    disk_file,
    files_in,
    is_sound,
    kv_of,
    path_of,
    shelf,
)

NUMBERS = range(6)


class FaultyDisk:
    """The os of sapwood.cache.disk.folder, whose changing call number `at` fails.

    for_good: and so do all behind it. A write that fails has written half of it.
    """

    def __init__(self, at: int, *, for_good: bool) -> None:
        self._at, self._for_good = at, for_good
        self.calls = 0
        self.failed: Counter[str] = Counter()  # by the name of the call

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, name: str, flags: int, *rest: Any, **options: Any) -> int:
        if flags & os.O_CREAT:
            self._call("open")
        return os.open(name, flags, *rest, **options)

    def rename(self, *names: str, **options: Any) -> None:
        self._call("rename")
        os.rename(*names, **options)

    def unlink(self, *names: str, **options: Any) -> None:
        self._call("unlink")
        os.unlink(*names, **options)

    def write_whole(self, file: Any, data: Any) -> None:
        try:
            self._call("write")
        except OSError:
            file.write(memoryview(data)[: len(data) // 2])
            raise
        file.write(data)

    def _call(self, name: str) -> None:
        self.calls += 1
        due = self.calls - 1 >= self._at if self._for_good else self.calls - 1 == self._at
        if due:
            self.failed[name] += 1
            raise OSError(errno.EIO, "the disk fails")


@contextmanager
def failing(at: int, *, for_good: bool) -> Iterator[FaultyDisk]:
    disk = FaultyDisk(at, for_good=for_good)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_module, "os", disk)
        patch.setattr(folder_module, "_write_whole", disk.write_whole)
        yield disk


class Books:
    """What the core knows of a shelf: what was told to be written, and not to be gone."""

    def __init__(self, opened: Shelf) -> None:
        self._opened = opened
        self._known: dict[Key, DiskFile] = dict(opened.found)

    def put(self, number: int) -> None:
        file = disk_file(number)
        if file.key not in self._known and self._opened.put(number):
            self._known[file.key] = file

    def look(self, number: int) -> None:
        """Read it: as it was, or forgotten from here on where it is told to be bad."""
        raw = self._opened.get(number)
        if raw.kv is not None:
            assert [bytes(block) for block in raw.kv["full"]] == [kv_of(number)]
        elif raw.bad and (file := self._known.pop(disk_file(number).key, None)):
            self._opened.store.carry_out(Erase((file,)))

    def give_way(self, number: int) -> None:
        """It goes for another's sake: nobody waits for that."""
        if file := self._known.pop(disk_file(number).key, None):
            self._opened.store.carry_out(Erase((file,)))

    def forget(self, *numbers: int) -> bool:
        """Somebody wants these gone. Whether he is told that they are."""
        keys = [disk_file(number).key for number in numbers]
        files = [self._known.pop(key) for key in keys if key in self._known]
        return self._opened.forget(files) == 0


def is_left(folder: Path, number: int) -> bool:
    """Any half of it, anywhere."""
    kv = kv_of(number)
    parts = kv[: len(kv) // 3], kv[len(kv) // 3 :]
    return any(part in path.read_bytes() for path in files_in(folder) for part in parts)


def day(opened: Shelf, folder: Path) -> tuple[int, ...]:
    """All that a store does. Returns the numbers that somebody was told are gone."""
    books = Books(opened)
    for number in range(4):
        books.put(number)
    if path_of(folder, 1).exists():
        whole = path_of(folder, 1).read_bytes()
        path_of(folder, 1).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    for number in NUMBERS:
        books.look(number)
    books.give_way(2)
    books.put(4)
    gone: tuple[int, ...] = ()
    for numbers in ((0,), (1, 2), (3, 4)):
        gone += numbers if books.forget(*numbers) else ()
    books.put(5)
    return gone


@pytest.mark.timeout(300)
@pytest.mark.parametrize("for_good", [False, True])
def test_whichever_call_fails_what_is_read_is_right_and_what_is_gone_is_gone(
    tmp_path: Path, for_good: bool
) -> None:
    """T14, T15: the first call, the second, the third, until there is none left to fail."""
    failed: Counter[str] = Counter()
    told = 0
    for at in range(1000):
        folder = tmp_path / str(at)
        with shelf(folder) as opened, failing(at, for_good=for_good) as disk:
            gone = day(opened, folder)
            left = [number for number in gone if is_left(folder, number)]
            assert not left, f"call {at} ({disk.failed}): {left} are told to be gone"
            opened.close()  # what it does behind everybody's back fails as well
        with shelf(folder) as opened:
            found = [number for number in NUMBERS if is_sound(opened, number)]
            assert not set(found) & set(gone), f"call {at}: {found} come back, and {gone} are gone"
        failed += disk.failed
        told += len(gone) == 5
        if not disk.failed:
            break
    assert {"open", "write", "rename", "unlink"} <= failed.keys() and at > 40
    assert told > 1, "and mostly it is gone"


def without_strays(patch: pytest.MonkeyPatch) -> None:
    """What a write left is nobody's."""
    patch.setattr(Store, "_write", _write_and_forget)


def _write_and_forget(self: Store, order: Any) -> None:
    _WRITE(self, order)
    self._strays.clear()


def without_what_is_aside(patch: pytest.MonkeyPatch) -> None:
    """As if nobody had anything put aside."""

    def carry_out(self: Store, order: DiskOrder) -> None:
        known = isinstance(order, Erase) and order.aside
        _CARRY_OUT(self, Erase(order.files, order.id) if known else order)  # type: ignore[union-attr]

    patch.setattr(Store, "carry_out", carry_out)


_WRITE, _CARRY_OUT = Store._write, Store.carry_out


@pytest.mark.timeout(300)
@pytest.mark.parametrize("off", [without_strays, without_what_is_aside])
def test_without_a_safeguard_something_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off: Any
) -> None:
    off(monkeypatch)
    with pytest.raises(AssertionError, match="told to be gone"):
        test_whichever_call_fails_what_is_read_is_right_and_what_is_gone_is_gone(tmp_path, False)

"""A folder of 100,000 files: a start that does not look at them, and few descriptors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sapwood.cache.disk.block_file import file_name
from sapwood.cache.disk.folder import JOURNAL, Folder
from sapwood.cache.disk.journal import _line, _sealed
from tests.cache.disk.shelf import Shelf, disk_file

MANY = 100_000


def fill(path: Path, files: int) -> None:
    """Known to the journal; what lies in them is nothing."""
    folder = Folder(path)
    lines = []
    for number in range(files):
        file = disk_file(number)
        os.close(os.open(path / file_name(file.key), os.O_CREAT | os.O_WRONLY, 0o600))
        lines.append(_sealed(_line(file)))
    folder.write(JOURNAL, b"".join(lines))
    folder.close()


@contextmanager
def counted(patch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of what is listed, and read, of a folder."""
    seen: list[str] = []

    def listed(self: Folder) -> set[str]:
        seen.append("names")
        return names(self)

    def read(self: Folder, name: str, bytes_max: int) -> bytes:
        seen.append(name)
        return whole(self, name, bytes_max)

    names, whole = Folder.names, Folder.read
    with patch.context() as patched:
        patched.setattr(Folder, "names", listed)
        patched.setattr(Folder, "read", read)
        yield seen


def test_to_open_a_folder_is_to_read_its_salt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a start waits for; the rest is the store's, once somebody runs it."""
    fill(tmp_path / "c", 50)
    with counted(monkeypatch) as seen:
        Folder(tmp_path / "c").close()
        assert seen == ["salt"]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_100_000_files_take_few_descriptors(tmp_path: Path) -> None:
    fill(tmp_path / "c", MANY)
    before = len(os.listdir("/dev/fd"))
    opened = Shelf(tmp_path / "c", bytes_max=1 << 40)
    try:
        most = len(os.listdir("/dev/fd"))
        assert len(opened.found) == MANY
        for number in range(0, MANY, MANY // 50):
            assert opened.get(number).quarantined == 1, "there is nothing in it"
            most = max(most, len(os.listdir("/dev/fd")))
        assert opened.erase() == 0
        most = max(most, len(os.listdir("/dev/fd")))
    finally:
        opened.close()
    assert most <= before + 4, f"{most} descriptors, {before} before"

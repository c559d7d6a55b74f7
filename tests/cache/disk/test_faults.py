"""What a disk tier's folder survives: flipped bytes, a disk that fails, kill -9 at any moment."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sapwood.cache.disk import folder as folder_module
from sapwood.cache.disk.block_file import SUFFIX
from sapwood.cache.disk.folder import Folder
from sapwood.scheduler.disk import DiskFailed
from tests.cache.disk.shelf import disk_file, files_in, is_sound, kv_of, name, shelf


@pytest.mark.parametrize("seed", range(2))
def test_a_byte_flipped_anywhere_changes_no_kv(tmp_path: Path, seed: int) -> None:
    """T15, C6. Of any file: a block's, the journal, the salt, the lock."""
    folder, draw = tmp_path / "c", random.Random(seed)
    with shelf(folder) as opened:
        for number in range(4):
            opened.put(number)
    found = []
    for _ in range(40):
        path = draw.choice(files_in(folder))
        data = bytearray(path.read_bytes())
        if not data:
            continue
        place = draw.randrange(len(data))
        data[place] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        with shelf(folder) as opened:
            for number in range(4):
                found.append(is_sound(opened, number))
                if not found[-1]:
                    opened.put(number)
    assert any(found) and not all(found)


class Failing(Folder):
    """Whose operation number `at` fails, and all behind it."""

    def __init__(self, path: Path, at: int, code: int) -> None:
        self.at, self.code, self.done = at, code, 0
        super().__init__(path)

    def _count(self) -> None:
        self.done += 1
        if self.done > self.at:
            raise OSError(self.code, os.strerror(self.code))

    def write(self, name: str, *parts: Any) -> None:
        self._count()
        super().write(name, *parts)

    def append(self, name: str, line: bytes) -> None:
        self._count()
        super().append(name, line)

    def remove(self, name: str) -> None:
        self._count()
        super().remove(name)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("at", range(4, 9))
def test_a_disk_that_fails_is_left_alone_with_one_line(
    tmp_path: Path, at: int, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever it fails: what was written is sound after a restart, what was not is not there."""
    folder = Failing(tmp_path / "c", at, code)
    with shelf(tmp_path / "c", folder=folder) as opened:
        whole = [number for number in range(6) if opened.put(number)]
        assert whole == list(range(len(whole))) and len(whole) < 6
        assert opened.erase() > 0, "and what cannot be removed is told of"
    told = [r.getMessage() for r in caplog.records]
    assert told == [f"prefixes are kept in memory alone from now on: {os.strerror(code)}"]
    with shelf(tmp_path / "c") as opened:
        assert set(opened.found) <= {(name(number), "full") for number in whole}
        assert all(is_sound(opened, number) for number in whole[: len(opened.found)])


def test_a_disk_that_fails_says_so(tmp_path: Path) -> None:
    with shelf(tmp_path / "c", folder=Failing(tmp_path / "c", 4, errno.ENOSPC)) as opened:
        for number in range(3):
            opened.store.write(disk_file(number), kv_of(number), 0)
            time.sleep(0.01)
        opened.next(DiskFailed)


def test_a_full_disk_leaves_no_half_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(file: Any, data: Any) -> None:
        file.write(memoryview(data)[: len(data) // 2])
        raise OSError(errno.ENOSPC, "full")

    with shelf(tmp_path / "c") as opened:
        opened.put(1)
        monkeypatch.setattr(folder_module, "_write_whole", half)
        assert not opened.put(2)
    assert not [path for path in files_in(tmp_path / "c") if path.name.endswith(".new")]


WRITER = """
import sys
from pathlib import Path
from tests.cache.disk.shelf import Shelf
opened = Shelf(Path(sys.argv[1]))
print("ready", flush=True)
for number in range(10**6):
    if number % 7 == 6:
        opened.erase(number - 3)
    opened.put(number)
"""


def killed_at_random(folder: Path, draw: random.Random) -> None:
    """A process that writes and erases, ended by kill -9."""
    command = [sys.executable, "-c", WRITER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(draw.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()


def check_after_a_kill(folder: Path) -> int:
    """All that is known is sound, and no more lies there; how much it is."""
    with shelf(folder) as opened:
        known = set(opened.found)
        numbers = [number for number in range(4000) if (name(number), "full") in known]
        assert len(numbers) == len(known)
        assert all(is_sound(opened, number) for number in numbers)
        lost = [n for n in range(max(numbers, default=0)) if n not in numbers and n % 7 != 3]
        assert len(lost) <= 1, f"{lost} are not there, and {max(numbers)} is"
        there = {path.name for path in files_in(folder) if path.suffix == SUFFIX}
        assert len(there) == len(known), "files that nobody knows of"
        opened.erase()
        return len(known)


def test_kill_9_while_it_writes_leaves_nothing_wrong(tmp_path: Path) -> None:
    draw = random.Random(1)
    killed_at_random(tmp_path / "c", draw)
    check_after_a_kill(tmp_path / "c")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_kill_9_at_200_points(tmp_path: Path) -> None:
    draw = random.Random(2)
    found = []
    for _ in range(200):
        killed_at_random(tmp_path / "c", draw)
        found.append(check_after_a_kill(tmp_path / "c"))
    assert len(set(found)) > 20, "killed at the same place again and again"

"""Conversions that were stopped, find no room, or meet another one."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sapwood.model.checkpoint.files import ModelDirectory, ModelRefused
from sapwood.model.checkpoint.locate import locate
from sapwood.model.convert.staging import StagingFolder, open_staging
from sapwood.model.pair import load_pair
from tests.model.convert.bundles import bundle, contents
from tests.model.packs import Directories

_KILLED = """
import os, signal, sys
from pathlib import Path
from sapwood.model.checkpoint.files import ModelDirectory
from tests.model.convert.bundles import bundle

seen = []
def report(file, done, total):
    seen.append(file)
    if len(set(seen)) == 3 and seen.count(file) == 2:  # within the third file
        os.kill(os.getpid(), signal.SIGKILL)

bundle(tuple(ModelDirectory(Path(p)) for p in sys.argv[1:3]), Path(sys.argv[3]), report=report)
"""


def test_a_killed_conversion_goes_on_where_it_stopped(one: Directories, tmp_path: Path) -> None:
    """kill -9 within the third shard: two are kept untouched, the third is made again."""
    made = tmp_path / "made"
    paths = [str(directory.path) for directory in one]
    killed = subprocess.run([sys.executable, "-c", _KILLED, *paths, str(made)], check=False)
    assert killed.returncode == -signal.SIGKILL
    work = tmp_path / "made.partial" / "bundle" / "target"
    finished = sorted(work.glob("[!.]*"))
    assert len(finished) == 2 and len(list(work.glob(".*"))) == 1
    assert not made.exists()
    with pytest.raises(ModelRefused, match="no such file"):
        load_pair(*locate(str(work.parent.parent), None))
    before = {path.name: path.stat().st_ino for path in finished}
    written: list[str] = []
    bundle(one, made, report=lambda file, done, total: written.append(file))
    assert {name: (made / "target" / name).stat().st_ino for name in before} == before
    assert not {f"target/{name}" for name in before} & set(written)
    assert not (tmp_path / "made.partial").exists()
    bundle(one, tmp_path / "straight")
    assert contents(made) == contents(tmp_path / "straight")


class _Stop(Exception):
    pass


def _stopped(pair: Directories, place: Path, file: str, **settings: Any) -> None:
    """A conversion that ends by an error when a file named so is begun."""

    def report(name: str, done: int, total: int) -> None:
        if name.startswith(file):
            raise _Stop

    with pytest.raises(_Stop):
        bundle(pair, place, report=report, **settings)


LAST = "assistant/"


def test_a_finished_file_that_was_damaged_since_is_made_again(
    one: Directories, tmp_path: Path
) -> None:
    _stopped(one, tmp_path / "made", LAST, shard_bytes_max=400_000)
    shard = sorted((tmp_path / "made.partial/bundle/target").glob("model-*"))[1]
    with shard.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    bundle(one, tmp_path / "made", shard_bytes_max=400_000)
    bundle(one, tmp_path / "straight", shard_bytes_max=400_000)
    assert contents(tmp_path / "made") == contents(tmp_path / "straight")


def test_another_conversion_is_never_continued(one: Directories, tmp_path: Path) -> None:
    _stopped(one, tmp_path / "made", LAST)
    others: list[dict[str, Any]] = [{"packing": "8bit"}, {"dtype": "float16"}, {"tool": "newer"}]
    for other in others:
        with pytest.raises(ModelRefused, match="unfinished conversion of other sources"):
            bundle(one, tmp_path / "made", **other)
    assert not (tmp_path / "made").exists()
    touched = ModelDirectory(shutil.copytree(one[0].path, tmp_path / "copy"))
    _stopped((touched, one[1]), tmp_path / "other", LAST)
    os.utime(touched.path / "model.safetensors", (1, 1))
    with pytest.raises(ModelRefused, match="unfinished conversion of other sources"):
        bundle((touched, one[1]), tmp_path / "other")


def test_every_file_is_on_the_disk_before_the_bundle_appears(
    one: Directories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[int] = set()
    missing: list[Path] = []
    publish = StagingFolder.publish

    def watched(self: StagingFolder) -> None:
        files = [p for p in self.bundle.rglob("*") if p.is_file()]
        missing.extend(p for p in files if p.stat().st_ino not in synced)
        publish(self)

    monkeypatch.setattr("os.fsync", lambda handle: synced.add(os.fstat(handle).st_ino))
    monkeypatch.setattr(StagingFolder, "publish", watched)
    bundle(one, tmp_path / "made")
    assert missing == []
    folders = [
        tmp_path,
        tmp_path / "made",
        *(p for p in (tmp_path / "made").iterdir() if p.is_dir()),
    ]
    assert {p.stat().st_ino for p in folders} <= synced


def test_a_destination_that_exists_is_left_alone(one: Directories, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    with pytest.raises(ModelRefused, match="exists already"):
        bundle(one, tmp_path / "made")
    assert list(tmp_path.iterdir()) == [tmp_path / "made"]
    (tmp_path / "other.partial").mkdir()
    (tmp_path / "other.partial" / "mine").touch()
    with pytest.raises(ModelRefused, match="is in the way"):
        bundle(one, tmp_path / "other")
    assert (tmp_path / "other.partial" / "mine").exists()


def test_one_process_at_a_time(one: Directories, tmp_path: Path) -> None:
    with (
        open_staging(tmp_path / "made", "mine"),
        pytest.raises(ModelRefused, match="another process"),
    ):
        bundle(one, tmp_path / "made")


@pytest.mark.parametrize("nth", [1, 40, 200])
def test_a_full_disk_leaves_no_half_bundle_and_the_rest_is_done_later(
    nth: int, one: Directories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = 0

    def full(self: StagingFolder, name: str, fill: Any, *, journal: bool = False) -> Any:
        class Full:
            def __init__(self, file: Any) -> None:
                self._file = file

            def __getattr__(self, name: str) -> Any:
                return getattr(self._file, name)

            def write(self, data: bytes) -> Any:
                nonlocal writes
                writes += 1
                if writes == nth:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return self._file.write(data)

        return write(self, name, lambda file: fill(Full(file)), journal=journal)

    write = StagingFolder.write
    with monkeypatch.context() as patched:
        patched.setattr(StagingFolder, "write", full)
        with pytest.raises(OSError, match="No space left"):
            bundle(one, tmp_path / "made")
    assert not (tmp_path / "made").exists()
    bundle(one, tmp_path / "made")
    load_pair(*locate(str(tmp_path / "made"), None))


def test_too_little_room_is_said_before_anything_is_written(
    one: Directories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(9, 8, 1))
    with pytest.raises(ModelRefused, match=r"\d+ bytes are to be written, 1 are free"):
        bundle(one, tmp_path / "made")

"""The folder of a disk tier: what is there is whole, and nothing else is ever given out."""

from __future__ import annotations

import itertools
import json
import os
import stat
import time
from pathlib import Path
from zlib import crc32

import pytest

from sapwood.cache.disk.block_file import SUFFIX
from sapwood.cache.disk.folder import (
    JOURNAL,
    LOCK,
    QUARANTINE,
    QUARANTINED_MAX,
    SALT,
    Folder,
    FolderRefused,
)
from sapwood.cache.disk.journal import Journal
from sapwood.cache.disk.store import CREDITS, RawGroup
from sapwood.cache.prefix.catalogue import HEAD_BYTES
from sapwood.scheduler.disk import Erase, Read, ReadGroup, StopRead, Touch
from tests.cache.disk.shelf import (
    LAYOUT,
    Shelf,
    disk_file,
    files_in,
    is_sound,
    kv_of,
    name,
    path_of,
    shelf,
)


def test_what_is_written_outlives_the_process(tmp_path: Path) -> None:
    """C6: bit for bit, with its place in the order of use, and the budget."""
    with shelf(tmp_path / "c") as opened:
        assert opened.put(1) and opened.put(2) and opened.put(2, "sliding", budget=5)
        opened.store.carry_out(Touch(((name(1), "full"),)))
    with shelf(tmp_path / "c") as opened:
        order = [(name(2), "full"), (name(2), "sliding"), (name(1), "full")]
        assert list(opened.found) == order
        assert opened.found[name(2), "sliding"] == disk_file(2, "sliding")
        assert opened.budget_bytes == 5
        kv = opened.get(1, 2).kv
        assert kv is not None
        assert [bytes(block) for block in kv["full"]] == [kv_of(1), kv_of(2)]


def test_a_file_is_safetensors(tmp_path: Path) -> None:
    with shelf(tmp_path / "c") as opened:
        opened.put(1)
    data = path_of(tmp_path / "c", 1).read_bytes()
    length = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + length])
    assert head["kv"] == {"dtype": "F32", "shape": [2, 4, 3], "data_offsets": [0, LAYOUT.nbytes]}
    assert data[8 + length :] == kv_of(1) and 8 + length == HEAD_BYTES


def test_nobody_else_may_look_into_it(tmp_path: Path) -> None:
    with shelf(tmp_path / "deep" / "c") as opened:
        opened.put(1)
        modes = {stat.S_IMODE(path.stat().st_mode) for path in files_in(tmp_path)}
        assert modes == {0o600}
        for made in (tmp_path / "deep" / "c", tmp_path / "deep" / "c" / QUARANTINE):
            assert stat.S_IMODE(made.stat().st_mode) == 0o700


def test_a_second_process_is_refused_and_the_next_is_not(tmp_path: Path) -> None:
    with shelf(tmp_path / "c"), pytest.raises(FolderRefused, match="another process"):
        Folder(tmp_path / "c")
    Folder(tmp_path / "c").close()


def test_a_folder_of_others_or_of_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_folder = tmp_path / "open"
    open_folder.mkdir(0o755)
    with pytest.raises(FolderRefused, match="0700"):
        Folder(open_folder)
    used = tmp_path / "used"
    used.mkdir(0o700)
    (used / "letter").write_text("dear")
    with pytest.raises(FolderRefused, match="something else"):
        Folder(used)
    assert [path.name for path in used.iterdir()] == ["letter"]
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(FolderRefused, match="another user"):
        Folder(tmp_path / "mine")


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    with shelf(tmp_path / "c") as opened:
        opened.put(1)
    letter = tmp_path / "c" / "a.letter.txt"
    letter.write_text("dear")
    with shelf(tmp_path / "c") as opened:
        opened.erase()
    assert letter.read_text() == "dear"


def test_salts_are_drawn_once_for_each_folder(tmp_path: Path) -> None:
    salts = []
    for where in ("a", "a", "b"):
        folder = Folder(tmp_path / where)
        salts.append(folder.salt)
        folder.close()
    assert salts[0] == salts[1] != salts[2]
    (tmp_path / "a" / SALT).write_bytes(salts[0][:-1])
    folder = Folder(tmp_path / "a")
    assert folder.salt not in salts and len(folder.salt) == len(salts[0])
    folder.close()


def test_what_is_erased_is_gone(tmp_path: Path) -> None:
    """T14: what was put aside and left over too, and after a restart as well."""
    folder = tmp_path / "c"
    with shelf(folder) as opened:
        for number in range(4):
            opened.put(number)
        assert opened.erase(1) == 0
        assert not path_of(folder, 1).exists() and path_of(folder, 2).exists()
        path_of(folder, 2).write_bytes(b"damaged")
        assert not is_sound(opened, 2)
        (folder / f"{name(9).hex()}.full{SUFFIX}.new").write_bytes(b"left")
        assert opened.erase() == 0
        left = {path.name for path in files_in(folder)}
        assert left == {LOCK, SALT, JOURNAL}
        assert not any(name(n).hex() in (folder / JOURNAL).read_text() for n in range(4))
    with shelf(folder) as opened:
        assert not opened.found
        assert opened.put(1), "and may come again"


def test_what_is_written_before_an_erasure_goes_and_after_it_stays(tmp_path: Path) -> None:
    with shelf(tmp_path / "c") as opened:
        opened.store.write(disk_file(1), kv_of(1), 0)
        opened.store.carry_out(Erase(None))
        opened.store.write(disk_file(2), kv_of(2), 0)
    with shelf(tmp_path / "c") as opened:
        assert list(opened.found) == [(name(2), "full")]


def test_what_is_damaged_is_put_aside_and_a_few_are_kept(tmp_path: Path) -> None:
    with shelf(tmp_path / "c") as opened:
        for number in range(QUARANTINED_MAX + 3):
            opened.put(number)
            path_of(tmp_path / "c", number).write_bytes(b"x" * disk_file(number).size)
            raw = opened.get(number)
            assert (raw.kv, raw.bad, raw.quarantined) == (None, ((name(number), "full"),), 1)
        aside = list((tmp_path / "c" / QUARANTINE).iterdir())
        assert len(aside) == QUARANTINED_MAX
        raw = opened.get(77)
        assert (raw.kv, raw.quarantined) == (None, 0), "what is not there is not damaged"


def test_a_file_under_another_name_is_damaged(tmp_path: Path) -> None:
    with shelf(tmp_path / "c") as opened:
        opened.put(1)
        opened.put(2)
        os.replace(path_of(tmp_path / "c", 1), path_of(tmp_path / "c", 2))
        assert not is_sound(opened, 2)


def test_the_journal_is_written_anew_when_it_has_grown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sapwood.cache.disk.journal._SPARE_LINES", 20)
    with shelf(tmp_path / "c") as opened:
        opened.put(1)
        for _ in range(100):
            opened.store.carry_out(Touch(((name(1), "full"),)))
    assert len((tmp_path / "c" / JOURNAL).read_text().splitlines()) < 30


def test_less_room_than_before_takes_the_least_recently_used(tmp_path: Path) -> None:
    with shelf(tmp_path / "c") as opened:
        for number in range(4):
            opened.put(number)
    with shelf(tmp_path / "c", bytes_max=2 * disk_file(0).size) as opened:
        assert list(opened.found) == [(name(2), "full"), (name(3), "full")]
    assert not path_of(tmp_path / "c", 0).exists()


def test_no_more_is_read_ahead_than_somebody_takes(tmp_path: Path) -> None:
    with shelf(tmp_path / "c") as opened:
        opened.put(1)
        groups = tuple(ReadGroup(0, 4, (disk_file(1),), ()) for _ in range(CREDITS + 3))
        opened.store.carry_out(Read(1, groups))
        for _ in range(CREDITS):
            opened.next(RawGroup)
        time.sleep(0.05)
        assert opened.reports.empty()
        opened.store.taken()
        opened.next(RawGroup)
        opened.store.carry_out(StopRead(1))
        for _ in range(CREDITS):
            opened.store.taken()
        assert opened.put(2), "who reads for nobody stops"
        assert opened.reports.empty()


def test_many_files_take_few_descriptors(tmp_path: Path) -> None:
    """As many as one, however many are written and read."""
    with shelf(tmp_path / "c") as opened:
        opened.put(0)
        before = len(os.listdir("/dev/fd"))
        for number in range(1, 300):
            opened.put(number)
        assert is_sound(opened, 17)
        assert len(opened.get(*range(300)).kv or ()) == 2
        assert len(os.listdir("/dev/fd")) <= before + 1


def test_lines_that_say_nothing_of_ours_are_passed_over(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "c")
    for line in ("+ zz full", "+", "= many", "^ 00 other", "- 00 full", "+ 00 full 00 00 5", ""):
        data = line.encode()
        folder.append(JOURNAL, b"%08x %s\n" % (crc32(data), data))
    folder.append(JOURNAL, b"torn")
    journal = Journal(folder, 3)
    journal.load()
    assert not journal.files
    folder.close()


def test_a_shelf_ends_with_what_was_ordered_done(tmp_path: Path) -> None:
    opened = Shelf(tmp_path / "c")
    opened.store.write(disk_file(1), kv_of(1), 0)
    opened.store.write(disk_file(2), kv_of(2), 0)
    assert not opened.store.takes_writes
    opened.close()
    assert path_of(tmp_path / "c", 2).exists()


def test_clocks_that_jump_change_no_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes first is told by the journal: not by times of files, nor by any clock."""
    jumps = itertools.count(10**9, -(10**5))
    monkeypatch.setattr(time, "time", lambda: float(next(jumps)))
    with shelf(tmp_path / "c") as opened:
        for number in range(4):
            opened.put(number)
            os.utime(path_of(tmp_path / "c", number), (0, 10**9 - number * 10**8))
    with shelf(tmp_path / "c", bytes_max=2 * disk_file(0).size) as opened:
        assert list(opened.found) == [(name(2), "full"), (name(3), "full")]


def test_what_was_put_aside_last_is_kept_by_any_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a day that is still to come do not push out what was found now."""
    with shelf(tmp_path / "c") as opened:
        for number in range(QUARANTINED_MAX + 2):
            opened.put(number)
            path_of(tmp_path / "c", number).write_bytes(b"x")
            with monkeypatch.context() as patched:
                patched.setattr(Folder, "_quarantined", newest_first)
                assert opened.get(number).quarantined == 1
        aside = {path.name for path in (tmp_path / "c" / QUARANTINE).iterdir()}
        assert len(aside) == QUARANTINED_MAX
        assert path_of(tmp_path / "c", QUARANTINED_MAX + 1).name in aside


_quarantined = Folder._quarantined


def newest_first(self: Folder) -> list[str]:
    """As by a clock that goes back."""
    return _quarantined(self)[::-1]


def test_whoever_removes_what_was_put_aside_breaks_nothing(tmp_path: Path) -> None:
    with shelf(tmp_path / "c") as opened:
        for number in range(2):
            opened.put(number)
            path_of(tmp_path / "c", number).write_bytes(b"damaged")
        (tmp_path / "c" / QUARANTINE).rmdir()
        assert opened.forget([]) == 0
        assert opened.get(0).quarantined == 1
        assert len(list((tmp_path / "c" / QUARANTINE).iterdir())) == 1
        assert opened.put(2), "and it is no reason to stop"


def test_who_has_nothing_there_is_no_reason_to_write_the_journal_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a line for each file, and sessions are deleted all the time."""
    anew: list[Journal] = []
    monkeypatch.setattr(Journal, "rewrite", lambda journal: anew.append(journal))
    with shelf(tmp_path / "c") as opened:
        opened.put(1)
        assert opened.forget([]) == 0 and not anew
        assert opened.forget([disk_file(1)]) == 0 and len(anew) == 1

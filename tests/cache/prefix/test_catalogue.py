"""The index over a folder's files: names, what is found, what goes."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import pytest

from sapwood.cache.prefix.blocks import Block, Names, block_tokens
from sapwood.cache.prefix.catalogue import Catalogue, DiskFile, DiskReach, Kind
from sapwood.cache.prefix.radix import pack

SIZE = 4  # tokens of a block
NAMES = Names(b"salt", SIZE)
ROOT = b"root"
BOTH: tuple[Kind, ...] = ("full", "sliding")


def tokens(count: int, last: int = 0) -> array[int]:
    return pack([*range(count - 1), last])


def blocks(count: int, root: bytes = ROOT, first: int = 0) -> list[Block]:
    path = pack([first, *range(1, count * SIZE)])
    return NAMES.blocks(root, path, len(path))


def add(catalogue: Catalogue, block: Block, kinds: Sequence[Kind] = BOTH) -> list[DiskFile]:
    """What went for it."""
    gone: list[DiskFile] = []
    for kind in kinds:
        file = DiskFile(block.name, kind, block.path, block.above, b"t", 10)
        begun, found = catalogue.begin(file)
        assert begun
        gone += found
        catalogue.written(file.key, whole=True)
    return gone


def filled(path: Sequence[Block], bytes_max: int = 1000) -> Catalogue:
    catalogue = Catalogue(bytes_max, NAMES.top)
    for block in path:
        add(catalogue, block)
    return catalogue


def test_a_name_says_all_that_came_before_it_and_whose_it_is() -> None:
    one = NAMES.blocks(ROOT, tokens(8), 8)
    assert [(b.start, b.end) for b in one] == [(0, 4), (4, 8)]
    assert one[1].above == one[0].path
    assert NAMES.blocks(ROOT, tokens(8, last=5), 8)[0] == one[0]
    assert NAMES.blocks(ROOT, tokens(8, last=5), 8)[1].name != one[1].name
    other = NAMES.blocks(b"tenant", tokens(8), 8)
    assert [b.path for b in other] == [b.path for b in one]
    assert {b.name for b in other}.isdisjoint(b.name for b in one)
    for names in (Names(b"other salt", SIZE), Names(b"salt", 2 * SIZE)):
        assert names.blocks(ROOT, tokens(8), 8)[0].name != one[0].name


def test_only_whole_blocks_have_names() -> None:
    assert [len(NAMES.blocks(ROOT, tokens(9), end)) for end in (0, 3, 4, 7, 9)] == [0, 0, 1, 1, 2]
    assert len(NAMES.paths(tokens(9), 9)) == 3


@pytest.mark.parametrize(("per_token", "expected"), [(100, 128), (65_536, 64), (10**7, 16)])
def test_a_block_is_as_long_as_can_be_copied_unnoticed(per_token: int, expected: int) -> None:
    assert block_tokens(per_token) == expected


def test_what_is_reached_is_what_can_be_restored() -> None:
    """Full K/V from where memory has it, and sliding K/V of a whole window before the end."""
    path = blocks(6)
    catalogue = Catalogue(1000, NAMES.top)
    for index, block in enumerate(path):
        add(catalogue, block, BOTH if index in (1, 2, 5) else ("full",))
    # A window of 6 before 24 begins in block 4, whose sliding K/V is missing; before 12 in 1.
    assert catalogue.reach(path, 0, 0, window=6) == DiskReach(0, 1, 3)
    assert catalogue.reach(path, 0, 0, window=4) == DiskReach(0, 5, 6)
    assert catalogue.reach(path, 0, 0, window=0) == DiskReach(0, 6, 6)
    assert catalogue.reach(path, 0, 9, window=6) == DiskReach(1, 1, 3)
    assert catalogue.reach(path, 12, 14, window=6) is None
    # Nothing that memory lacks, but the window that was thinned there.
    assert catalogue.reach(path, 2, 24, window=6) == DiskReach(1, 1, 3)
    catalogue.forget((path[2].name, "full"))
    assert catalogue.reach(path, 0, 0, window=4) == DiskReach(0, 1, 2)
    assert catalogue.reach([], 0, 0, window=4) is None


def test_the_least_recently_used_goes_and_of_a_path_its_end() -> None:
    path, other = blocks(2), blocks(1, first=99)
    catalogue = filled([*path, *other], bytes_max=60)
    assert [key[0] for key in catalogue.touch(path)] == [b.name for b in path[::-1] for _ in BOTH]
    assert {file.name for file in add(catalogue, blocks(1, first=98)[0])} == {other[0].name}
    assert {file.name for file in add(catalogue, blocks(1, first=97)[0])} == {path[1].name}
    assert sum(catalogue.bytes.values()) == 60


def test_what_is_kept_does_not_give_way() -> None:
    catalogue = filled(blocks(1), bytes_max=20)
    ours, other = blocks(1)[0], blocks(1, first=9)[0]
    file = DiskFile(other.name, "full", other.path, other.above, b"t", 5)
    assert catalogue.begin(file, {ours.path}) == (False, [])
    assert len(catalogue) == 2


def test_what_is_being_written_is_not_found_and_not_written_twice() -> None:
    block = blocks(1)[0]
    catalogue = Catalogue(100, NAMES.top)
    file = DiskFile(block.name, "full", block.path, block.above, b"t", 10)
    assert catalogue.begin(file) == (True, [])
    assert catalogue.knows(*file.key) and catalogue.find(*file.key) is None
    assert catalogue.written(file.key, whole=False) is None
    assert not catalogue.knows(*file.key) and not any(catalogue.bytes.values())
    catalogue.begin(file)
    assert catalogue.forget_all() == [file]
    assert catalogue.written(file.key, whole=True) is None
    assert catalogue.find(*file.key) is None


def test_what_is_begun_anew_is_there_once_its_own_write_is() -> None:
    """Not by the write before it, whose file goes."""
    block = blocks(1)[0]
    catalogue = Catalogue(100, NAMES.top)
    file = DiskFile(block.name, "full", block.path, block.above, b"t", 10)
    catalogue.begin(file)
    assert catalogue.forget_all() == [file]
    catalogue.begin(file)
    assert catalogue.written(file.key, whole=True) is None
    assert catalogue.find(*file.key) is None and catalogue.knows(*file.key)
    assert catalogue.written(file.key, whole=True) == file
    assert catalogue.find(*file.key) == file and catalogue.bytes["full"] == 10


def test_what_begins_with_a_prefix_goes_under_every_root() -> None:
    """All behind it, and before it what leads nowhere else."""
    ours, theirs = blocks(4), blocks(4, root=b"tenant")
    fork = NAMES.blocks(ROOT, pack([*range(SIZE), *range(90, 90 + SIZE)]), 2 * SIZE)
    catalogue = filled([*ours, *theirs, fork[1]])
    path = pack(range(4 * SIZE))
    gone = catalogue.forget_path(NAMES.paths(path, 3 * SIZE))
    assert {file.name for file in gone} == {b.name for b in (*ours[1:], *theirs[1:])}
    assert len(gone) == 2 * 6
    gone = catalogue.forget_path(NAMES.paths(path, SIZE))
    assert {file.name for file in gone} == {ours[0].name, theirs[0].name, fork[1].name}
    assert len(catalogue) == 0 and not catalogue._at and not catalogue._below


def test_behind_what_is_lost_nothing_stays() -> None:
    """T14: else it could not be found when the prefix is cleared."""
    path = blocks(4)
    catalogue = filled(path)
    assert catalogue.forget((path[1].name, "full")) and catalogue.find(path[2].name, "full")
    gone = catalogue.forget((path[1].name, "sliding"))
    assert {file.name for file in gone} == {block.name for block in path[1:]}
    file = DiskFile(path[2].name, "full", path[2].path, path[2].above, b"t", 10)
    assert catalogue.begin(file) == (False, [])
    files = [DiskFile(b.name, "full", b.path, b.above, b"t", 10) for b in path if b is not path[1]]
    found = Catalogue(1000, NAMES.top, files)
    assert {file.name for file in found.adrift()} == {path[2].name, path[3].name}
    assert len(found) == 1 and found.adrift() == []

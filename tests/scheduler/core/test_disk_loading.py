"""A folder is told of bit by bit, while its daemon serves already."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sapwood.cache.prefix.catalogue import DiskFile
from sapwood.scheduler.disk import DiskFailed, FilesFound
from sapwood.scheduler.events import Clear, Failed, Forget
from sapwood.scheduler.reasons import Reason
from tests.scheduler.core.test_disk import LIMITS, LONG
from tests.scheduler.disk_house import BLOCK, DISK, NAMES, DiskHouse, folder
from tests.scheduler.house import finished, prompt


@pytest.fixture
def written() -> DiskHouse:
    """One that has answered a long prompt, and written it down."""
    house = DiskHouse(limits=LIMITS)
    house.submit(prompt(LONG))
    house.run()
    return house


def loading(written: DiskHouse, **options: Any) -> tuple[DiskHouse, list[DiskFile]]:
    """The next process on the same folder, and what is there to be told of."""
    catalogue = written.core._memory.disk._catalogue  # type: ignore[attr-defined]
    files = [file for key, file in catalogue._files.items() if key in written.disk.files]
    opened = replace(folder(), loading=True, budget_bytes=0, **options)
    return DiskHouse(written.disk.left(), limits=LIMITS, folder=opened), files


def tell(house: DiskHouse, files: list[DiskFile]) -> None:
    """In two parts, the last one without any."""
    house.handle(FilesFound(tuple(files)))
    house.handle(FilesFound((), DISK))
    house.pass_on()


def test_who_comes_before_the_folder_is_known_waits_for_it(written: DiskHouse) -> None:
    house, files = loading(written)
    early = house.submit(prompt(LONG))
    short = house.submit(prompt(5, seed=3))
    while short.end is None:
        house.step_alone()
    assert not early.progress and house.core.plan(house.now) is None
    tell(house, files)
    house.run()
    assert finished(early).usage.cached_tokens == LONG // BLOCK * BLOCK
    house.close()


def test_nobody_waits_long_for_a_folder_that_is_not_told_of(written: DiskHouse) -> None:
    house, files = loading(written)
    early = house.submit(prompt(LONG))
    assert house.core.plan(house.now) is None
    house.now += LIMITS.page_in_s_max
    while early.end is None:
        assert house.step_alone() is not None
    assert house.core.page_out(house.now) is None, "nothing is written before all is known"
    tell(house, files)
    house.run()
    assert set(house.disk.files) >= {file.key for file in files}
    house.close()


def test_a_folder_that_fails_before_it_is_known_holds_nobody_up(written: DiskHouse) -> None:
    house, _ = loading(written)
    early = house.submit(prompt(LONG))
    assert house.core.plan(house.now) is None
    house.handle(DiskFailed())
    house.run()
    assert finished(early).usage.cached_tokens == 0 and house.core.stats().disk.state == "degraded"
    house.close()


def test_of_a_folder_that_nobody_could_read_all_goes_or_nobody_is_told(written: DiskHouse) -> None:
    """T14: what begins with the prefix cannot be told from the rest, nor whose anything is."""
    house, files = loading(written)
    house.handle(DiskFailed())
    assert house.disk.files.keys() == {file.key for file in files}
    told = house.order(Forget(next(house.ids), "somebody", b"root"))
    assert isinstance(told, Failed) and told.reason is Reason.UNSUPPORTED
    house.clear(prompt(2 * BLOCK))
    assert not house.disk.files
    house.close()


def test_what_is_cleared_before_the_folder_is_known_goes(written: DiskHouse) -> None:
    house, files = loading(written)
    house.handle(Clear(next(house.ids)))
    house.pass_on()
    house.deliver()
    assert not house.answers, "nobody knows yet what is to go"
    tell(house, files)
    while not house.answers:
        assert house.operate()
    assert not house.disk.files
    house.close()


def test_what_is_of_nobody_who_may_come_goes_at_the_start(written: DiskHouse) -> None:
    """A tenant whose token was taken back while nobody served."""
    mine = NAMES.tenant(b"root")
    house, files = loading(written, tenants=frozenset({mine}))
    tell(house, files)
    house.run()
    assert house.disk.files.keys() == written.disk.files.keys() != set()
    house, files = loading(written, tenants=frozenset({NAMES.tenant(b"else")}))
    tell(house, files)
    house.run()
    assert not house.disk.files
    house.close()

"""What a disk may take, in all and in a day, whatever the clock does; and what goes for it."""

from __future__ import annotations

from sapwood.cache.prefix.catalogue import Catalogue
from sapwood.scheduler.core.page_outs import DAY_S, WriteBudget
from tests.scheduler.core.test_disk import LIMITS, LONG
from tests.scheduler.disk_house import NAMES, DiskHouse, folder
from tests.scheduler.house import finished, prompt


def test_a_days_writes_are_bounded_by_the_engines_clock() -> None:
    budget = WriteBudget(1000, left=100)
    assert budget.left(now=50.0) == 100
    budget.spend(100)
    assert budget.left(now=50.0) == 0
    assert budget.left(now=50.0 + DAY_S / 2) == 500
    assert budget.left(now=50.0 + 3 * DAY_S) == 1000


def test_a_clock_that_jumps_fills_no_more_than_a_day_s_budget() -> None:
    """T15: back and forth, however often: not a byte more than by a clock that stood still."""
    budget = WriteBudget(1000, left=1000)
    budget.left(now=DAY_S)
    budget.spend(1000)
    for _ in range(3):
        assert budget.left(now=0.0) == 0, "nor less than nothing"
        assert budget.left(now=DAY_S) == 0, "it was as late before"
    assert budget.left(now=1.5 * DAY_S) == 500
    assert budget.left(now=365 * DAY_S) == 1000


def test_no_more_is_written_than_may_be() -> None:
    """T15."""
    house = DiskHouse(limits=LIMITS, folder=folder(a_day=1, left=1))
    house.submit(prompt(LONG))
    house.run()
    assert not house.disk.files
    house.close()


def test_what_another_model_left_goes_by_its_use() -> None:
    """It is never found, and makes room for what is; what was used since stays."""
    house = DiskHouse(limits=LIMITS)
    house.submit(prompt(LONG), root=b"another model")
    house.run()
    foreign, size = set(house.disk.files), sum(house.disk.sizes.values())
    known = house.core._memory.disk._catalogue._files  # type: ignore[attr-defined]
    files = [file for key, file in known.items() if key in house.disk.files]
    opened = folder(Catalogue(size + size // 2, NAMES.top, files))
    house = DiskHouse(house.disk.left(), limits=LIMITS, folder=opened)
    ours = house.submit(prompt(LONG))
    house.run()
    assert finished(ours).usage.cached_tokens == 0
    assert 0 < len(foreign & set(house.disk.files)) < len(foreign)
    house.submit(prompt(LONG, seed=5))
    house.run()
    house.submit(prompt(LONG, seed=6))
    house.run()
    assert not foreign & set(house.disk.files), "nobody used it"
    house.close()

"""The engine's side of a folder: of one that cannot be opened, and of one that is slow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sapwood.cache.disk.store import RawReport
from sapwood.cache.prefix.catalogue import DiskFile, Kind
from sapwood.cache.prefix.snapshot import Payload
from sapwood.daemon.engine.disk_port import PAGE_OUT_STEPS, DiskPort
from sapwood.scheduler.disk import DiskOrder, Erase, Erased, PageOut, Touch

FILE = DiskFile(b"n", "full", b"p", b"a", b"t", 10)
DUE = PageOut(FILE, None, (), 5)  # type: ignore[arg-type]


class PagingHouse:
    """A core with orders to give and blocks that are due without end, its pager and its store."""

    def __init__(self, *orders: DiskOrder) -> None:
        self.orders, self.done, self.sent = orders, list[object](), list[RawReport]()
        self.takes_writes = True

    def take_disk_orders(self) -> tuple[DiskOrder, ...]:
        orders, self.orders = self.orders, ()
        return orders

    def page_out(self, _now: float) -> PageOut | None:
        return DUE

    def copy_out(self, _order: PageOut) -> bytes:
        return b"kv"

    def paged_in(self, start: int, end: int, kv: Mapping[Kind, Sequence[memoryview]]) -> Payload:
        raise AssertionError("nothing is read")

    def carry_out(self, order: DiskOrder) -> None:
        self.done.append(order)

    def write(self, file: DiskFile, kv: bytes, budget_bytes: int) -> None:
        self.done.append((file, kv, budget_bytes))


def port(house: PagingHouse, *, opens: bool) -> DiskPort:
    def opened(_: object) -> Any:
        return house

    return DiskPort(house, house, opened if opens else None, house.sent.append)


def test_of_a_folder_that_could_not_be_opened_nothing_is_told_to_be_gone() -> None:
    """T14. Nor does anybody wait for an answer that never comes."""
    house = PagingHouse(Erase(None, 7, aside=True), Erase((FILE,)), Touch(()))
    shut = port(house, opens=False)
    shut.carry_out()
    assert house.sent == [Erased(7, left=1)]
    for _ in range(2 * PAGE_OUT_STEPS):
        shut.stepped(0.0)
    assert not shut.page_out(0.0) and not house.done


def test_a_block_is_copied_after_every_few_steps_and_none_while_two_are_written() -> None:
    house = PagingHouse()
    opened = port(house, opens=True)
    for _ in range(3 * PAGE_OUT_STEPS):
        opened.stepped(0.0)
    assert house.done == [(FILE, b"kv", 5)] * 3
    house.takes_writes = False
    for _ in range(PAGE_OUT_STEPS):
        opened.stepped(0.0)
    assert not opened.page_out(0.0) and len(house.done) == 3


def test_what_has_to_go_for_a_block_goes_before_it() -> None:
    """Or the folder would hold more than it may."""
    house = PagingHouse(Erase((FILE,)))
    assert port(house, opens=True).page_out(0.0)
    assert house.done == [Erase((FILE,)), (FILE, b"kv", 5)]

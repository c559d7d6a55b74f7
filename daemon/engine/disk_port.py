"""Between the engine's thread and the disk's: orders and bytes out, reports in.

- All of it runs on the engine's thread and waits for nothing. The core decides what is copied, the
  pager copies it, the store writes it.
- While somebody decodes, a block is copied after every PAGE_OUT_STEPS steps at most; while nobody
  does, one after another, for as long as no command waits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from sapwood.cache.disk.store import RawGroup, RawReport, Store
from sapwood.cache.prefix.catalogue import Kind
from sapwood.cache.prefix.snapshot import Payload
from sapwood.scheduler.disk import (
    DiskOrder,
    DiskReport,
    Erase,
    Erased,
    PagedIn,
    PageOut,
)

PAGE_OUT_STEPS = 4
CLOSE_S_MAX = 0.5
OpenStore = Callable[[Callable[[RawReport], None]], Store]


class PagingCore(Protocol):
    """What it asks of the core."""

    def take_disk_orders(self) -> tuple[DiskOrder, ...]:
        """What the disk is to do, in order, each once."""

    def page_out(self, now: float) -> PageOut | None:
        """What to copy now; its payloads are lent until the core's next call."""


class WithoutDisk:
    """What a core says of a disk that has none: what a disk reports is not recorded, so no record
    has one."""

    def take_disk_orders(self) -> tuple[DiskOrder, ...]:
        """None."""
        return ()

    def page_out(self, _now: float) -> PageOut | None:
        """None either."""
        return None

    def on_disk(self, _tokens_max: int | None = None) -> Mapping[int, Mapping[Kind, int]]:
        """Nothing."""
        return {}


class DevicePager(Protocol):
    """What it asks of model.pager.Pager."""

    def copy_out(self, order: PageOut) -> bytes:
        """A block's K/V of one kind."""

    def paged_in(self, start: int, end: int, kv: Mapping[Kind, Sequence[memoryview]]) -> Payload:
        """K/V of tokens [start, end) as the tree holds it."""


class DiskPort:
    """The engine's side of one folder; of none where `open_store` is None."""

    def __init__(
        self,
        core: PagingCore,
        pager: DevicePager,
        open_store: OpenStore | None,
        send: Callable[[RawReport], None],
    ) -> None:
        """send: of any thread, hands a report to the engine, which has it made a command here."""
        self._core, self._pager, self._send = core, pager, send
        self._store = None if open_store is None else open_store(send)
        self._steps = 0

    def close(self) -> None:
        """What is ordered is done still, if it is done soon."""
        if self._store is not None:
            self._store.close(CLOSE_S_MAX)

    def command(self, raw: RawReport) -> DiskReport:
        """What a report says to the core; makes the arrays of what was read."""
        if not isinstance(raw, RawGroup):
            return raw
        payload = None
        if raw.kv is not None:
            assert self._store is not None, "a group that nobody read"
            payload = self._pager.paged_in(raw.group.start, raw.group.end, raw.kv)
            self._store.taken()
        return PagedIn(raw.id, payload, raw.read_bytes, raw.seconds, raw.bad, raw.quarantined)

    def carry_out(self) -> None:
        """Pass on what the core has ordered."""
        for order in self._core.take_disk_orders():
            if self._store is not None:
                self._store.carry_out(order)
            elif isinstance(order, Erase) and order.id is not None:
                self._send(Erased(order.id, left=1))  # a folder that could not be opened

    def stepped(self, now: float) -> None:
        """A step is over."""
        self._steps += 1
        if self._steps % PAGE_OUT_STEPS == 0:
            self.page_out(now)

    def page_out(self, now: float) -> bool:
        """Copy a block and have it written; False: nothing is due, or two are being written."""
        if self._store is None or not self._store.takes_writes:
            return False
        order = self._core.page_out(now)
        self.carry_out()  # what has to go for it goes first
        if order is not None:
            self._store.write(order.file, self._pager.copy_out(order), order.budget_bytes)
        return order is not None

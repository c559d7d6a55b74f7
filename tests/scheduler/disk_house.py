"""A house with a disk: the fake writes token logs down, and fails as it is told to.

- One order a turn, in the store's order: reads first. What a file holds is the tokens that it was
  made of, so what comes back wrong shows in what is drawn next.
- Operations are counted one by one: each read; of a block the write beside its place, the rename
  and the line of the journal; all that an erasure is to remove at once.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from sapwood.cache.prefix.blocks import Names
from sapwood.cache.prefix.catalogue import Catalogue, Key
from sapwood.scheduler.disk import (
    DiskFailed,
    DiskFolder,
    DiskOrder,
    DiskReport,
    Erase,
    Erased,
    PagedIn,
    PageOut,
    Read,
    ReadGroup,
    StopRead,
    Touch,
    Written,
)
from sapwood.scheduler.events import Cleared, Command, Failed, Unpinned
from sapwood.scheduler.session_events import SessionTold
from tests.fakes import OutOfDeviceMemory, TokenLog, Tracker
from tests.scheduler.house import House

BLOCK = 8
NAMES = Names(b"salt", BLOCK)
DISK = 10**6
Content = tuple[int, ...]
WRITING = "write", "rename", "line"  # of one block, in order


def folder(catalogue: Catalogue | None = None, a_day: int = DISK, left: int = DISK) -> DiskFolder:
    return DiskFolder(NAMES, catalogue or Catalogue(DISK, NAMES.top), a_day, left)


@dataclass
class FakeDisk:
    """Files by their keys. fails_at: numbers of operations that fail, counted from 0.

    aside: what was damaged. lost: what lies there without a line in the journal.
    """

    tracker: Tracker
    files: dict[Key, Content] = field(default_factory=dict)
    aside: dict[Key, Content] = field(default_factory=dict)
    lost: dict[Key, Content] = field(default_factory=dict)
    damaged: set[Key] = field(default_factory=set)
    operations: int = 0
    fails_at: Callable[[int], bool] = lambda number: False
    breaks_at: int = -1  # the same, of one
    writes_fail: bool = True
    erases_fail: bool = False
    stalled: bool = False
    failed: bool = False
    files_left: bool = False  # somebody was told so
    broke: Counter[str] = field(default_factory=Counter)  # what failed, by kind
    sizes: dict[Key, int] = field(default_factory=dict)  # of what was ever written
    copied_bytes: int = 0  # out of the device, to be written
    written_bytes: int = 0
    read_seconds: float = 0.0
    _reads: deque[tuple[int, ReadGroup]] = field(default_factory=deque)
    _others: deque[tuple[PageOut, Content] | Erase] = field(default_factory=deque)

    verifies: ClassVar[bool] = True
    looks_aside: ClassVar[bool] = True

    @property
    def busy(self) -> bool:
        return bool(self._reads or self._others)

    def order(self, order: DiskOrder) -> None:
        match order:
            case Read(id, groups):
                self._reads += [(id, group) for group in groups]
            case StopRead(id):
                self._reads = deque(read for read in self._reads if read[0] != id)
            case Erase():
                self._others.append(order)
            case Touch():
                pass

    def copy(self, order: PageOut) -> None:
        self._allocate("page-out")
        self.copied_bytes += order.file.size
        start, end = order.block.start, order.block.end
        full: dict[int, int] = {}
        sliding: dict[int, int] = {}
        for payload in order.path:
            assert isinstance(payload, TokenLog)
            full.update(enumerate(payload.full, payload.start))
            sliding.update(enumerate(payload.sliding, payload.sliding_start))
        held = full if order.file.kind == "full" else sliding
        self._others.append((order, tuple(held[at] for at in range(start, end))))

    def turn(self) -> list[DiskReport]:
        """Carry out one order, if there is one."""
        if not self.busy or self.stalled:
            return []
        if self._reads:
            return [self._read(*self._reads.popleft())]
        other = self._others.popleft()
        if isinstance(other, Erase):
            return self._erase(other)
        return self._write(*other)

    def left(self) -> FakeDisk:
        """As by kill -9: what is on disk stays, but for what no journal knows."""
        found = dict(self.files), dict(self.aside)
        return FakeDisk(Tracker(), *found, damaged=set(self.damaged), sizes=self.sizes)

    def _allocate(self, kind: str) -> None:
        """What the device has to have for it."""
        try:
            self.tracker.operate()
        except OutOfDeviceMemory:
            self.broke[kind] += 1
            raise

    def _fails(self, kind: str, *, may: bool = True) -> bool:
        fails = may and (self.fails_at(self.operations) or self.operations == self.breaks_at)
        self.operations += 1
        if fails:
            self.broke[kind] += 1
        return fails

    def _write(self, order: PageOut, content: Content) -> list[DiskReport]:
        key, size = order.file.key, order.file.size
        if self.failed:
            return [Written(key, whole=False)]
        for kind in WRITING:
            if self._fails(kind, may=self.writes_fail):
                self.failed = True
                if kind == "line":
                    self.lost[key] = content
                return [DiskFailed(), Written(key, whole=False)]
        self.files[key], self.sizes[key] = content, size
        self.damaged.discard(key)
        self.written_bytes += size
        return [Written(key, whole=True)]

    def _read(self, id: int, group: ReadGroup) -> PagedIn:
        if self._fails("read"):
            self.damaged.add(group.files[0].key)
        bad = [f.key for f in group.files if f.key not in self.files]
        damaged = [f.key for f in group.files if f.key in self.damaged]
        if self.failed or bad or (damaged and self.verifies):
            self._reads = deque(read for read in self._reads if read[0] != id)
            self.aside |= {key: self.files.pop(key) for key in damaged if key in self.files}
            return PagedIn(id, None, 0, 0.0, tuple(bad + damaged), len(damaged))
        self._allocate("page-in")
        full = sum((self._content(f.key) for f in group.full), ())
        sliding = sum((self._content(f.key) for f in group.sliding), ())
        size = sum(file.size for file in group.files)
        log = TokenLog(self.tracker, group.start, full, sliding)
        return PagedIn(id, log, size, self.read_seconds)

    def _content(self, key: Key) -> Content:
        content = self.files[key]
        return tuple(t ^ 1 for t in content) if key in self.damaged else content

    def _erase(self, order: Erase) -> list[DiskReport]:
        keys = list(self.files) if order.files is None else [f.key for f in order.files]
        fails = self._fails("unlink", may=self.erases_fail)
        told: list[DiskReport] = [DiskFailed()] if fails and not self.failed else []
        self.failed |= fails
        if fails:
            self.lost |= {key: self.files.pop(key) for key in keys if key in self.files}
        for key in () if fails else keys:
            self.files.pop(key, None)
            self.lost.pop(key, None)
        if order.aside and self.looks_aside and not fails:
            self.aside.clear()
            self.lost.clear()
        self.files_left |= fails and order.id is not None
        return told if order.id is None else [*told, Erased(order.id, int(fails))]


class DiskHouse(House):
    """The loop with a disk beside it: an operation a turn, and a block copied after a step."""

    def __init__(self, disk: FakeDisk | None = None, **options: Any) -> None:
        options.setdefault("folder", folder())
        super().__init__(**options)
        self.disk = disk or FakeDisk(self.device.tracker)
        self.disk.tracker = self.device.tracker

    def step(self) -> Any:
        plan = super().step()
        self.pass_on()
        if plan is not None:
            self.copy()
        self.operate()
        return plan

    def step_alone(self) -> Any:
        """A step, while the disk does nothing."""
        plan = super().step()
        self.pass_on()
        return plan

    def order(self, command: Command) -> Unpinned | Cleared | SessionTold | Failed:
        """Of what is to go: answered once the disk has done it."""
        answered, self.disk.stalled = len(self.answers), False
        self.handle(command)
        self.pass_on()
        self.deliver()
        while len(self.answers) == answered:
            assert self.operate(), "nobody answers"
        return self.answers[-1]

    def run(self, steps_max: int = 5000) -> None:
        """Until nothing is left to do, on disk either."""
        steps, self.disk.stalled = 0, False
        while steps < steps_max:
            if self.core.has_work or self.core._memory.disk.is_reading:
                steps += self.step() is not None
            elif not (self.copy() or self.operate()):
                return
        raise AssertionError(f"L2: still at work after {steps_max}: {self.core.stories()}")

    def pass_on(self) -> None:
        for order in self.core.take_disk_orders():
            self.disk.order(order)

    def copy(self) -> bool:
        order = self.core.page_out(self.now)
        self.stimuli.append(("page out", self.now, order and order.file))
        self.pass_on()
        if order is not None:
            self.disk.copy(order)
        return order is not None

    def idle(self, seconds: float) -> None:
        """A turn of the loop in which nobody has anything to do."""
        self.now += seconds
        if self.core._memory.disk.is_reading:
            self.step()
        elif not self.copy():
            self.operate()

    def operate(self) -> bool:
        """One operation of the disk, and what it says."""
        was = self.disk.busy
        for report in self.disk.turn():
            self.told(report)
        self.deliver()
        return was

    def told(self, report: DiskReport) -> None:
        """What was read is remembered by its tokens: its payload is taken."""
        if not isinstance(report, PagedIn) or report.payload is None:
            self.handle(report)
            return
        held = report.payload
        assert isinstance(held, TokenLog)
        start, full, sliding = held.start, held.full, held.sliding

        def again(tracker: Tracker) -> PagedIn:
            return replace(report, payload=TokenLog(tracker, start, full, sliding))

        self.stimuli.append(("paged", self.now, again))
        self.core.handle(report, self.now)
        self.core.check()


def reopened(disk: FakeDisk, files: Catalogue) -> DiskFolder:
    """What the next process finds: no more than there is."""
    kept = [file for key, file in files._files.items() if key in disk.files]
    return folder(Catalogue(DISK, NAMES.top, kept))

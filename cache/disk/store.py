"""The one thread that reads and writes a disk tier's folder.

- Orders come from the engine's thread, which never waits for them; reports go back through one call
  that must only post. Bounded: at most WRITES_MAX files wait to be written, and as many groups that
  were read wait to be taken as there are `credits`.
- What lies in the folder is found here, once the engine runs, and told of bit by bit: a start does
  not wait for it, however full the folder is.
- Reads come first; all others are carried out in their order. So what was erased after it was
  written is gone, and what is written after that is there.
- What cannot be verified is put aside and told of; its bytes go to nobody.
- The first write that fails ends writing and reading, with one line in the log. What is to be
  erased is tried still; what that leaves, and what a write left, goes with a later erasure.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sapwood.cache.disk.block_file import BlockLayout, file_head, file_name, verified
from sapwood.cache.disk.folder import NEW, Folder
from sapwood.cache.disk.journal import Journal
from sapwood.cache.prefix.catalogue import HEAD_BYTES, DiskFile, Key, Kind
from sapwood.scheduler.disk import (
    DiskFailed,
    DiskOrder,
    Erase,
    Erased,
    FilesFound,
    Read,
    ReadGroup,
    StopRead,
    Touch,
    Written,
)

WRITES_MAX = 2
CREDITS = 2
FOUND_FILES = 1000  # in one report

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RawGroup:
    """A ReadGroup's K/V as bytes, block by block; None: it could not be read.

    bad: keys of files that are not there any more; quarantined: how many of them were damaged.
    """

    id: int
    group: ReadGroup
    kv: Mapping[Kind, tuple[memoryview, ...]] | None
    read_bytes: int = 0
    seconds: float = 0.0
    bad: tuple[Key, ...] = ()
    quarantined: int = 0


@dataclass(frozen=True, slots=True)
class _Write:
    file: DiskFile
    kv: bytes
    budget_bytes: int


RawReport = RawGroup | Written | Erased | DiskFailed | FilesFound


class Store:
    """Starts the thread, and talks to it."""

    def __init__(
        self,
        folder: Folder,
        layouts: Mapping[Kind, BlockLayout],
        report: Callable[[RawReport], None],
        bytes_max: int,
        budget_bytes: int,
    ) -> None:
        """Owns the folder from here on. report: called on the store's thread.

        bytes_max: that its files may take. budget_bytes: that may be written, if it does not say.
        """
        self._folder, self._layouts = folder, layouts
        self._journal, self._bytes_max = Journal(folder, budget_bytes), bytes_max
        self._report = report
        self._changed = threading.Condition()
        self._reads: deque[Read] = deque()
        self._others: deque[Erase | Touch | _Write] = deque()
        self._writes = 0
        self._credits = CREDITS
        self._stopped: set[int] = set()
        self._reading: int | None = None
        self._ending = False
        self._failed = False
        self._strays: set[str] = set()  # that may lie there, and nobody knows of
        self._thread = threading.Thread(target=self._run, name="disk", daemon=True)
        self._thread.start()

    @property
    def takes_writes(self) -> bool:
        """Whether another write() may come."""
        return self._writes < WRITES_MAX

    def carry_out(self, order: DiskOrder) -> None:
        """Without waiting."""
        with self._changed:
            if isinstance(order, Read):
                self._reads.append(order)
            elif isinstance(order, StopRead):
                self._reads = deque(read for read in self._reads if read.id != order.id)
                if order.id == self._reading:
                    self._stopped.add(order.id)
            else:
                self._others.append(order)
            self._changed.notify()

    def write(self, file: DiskFile, kv: bytes, budget_bytes: int) -> None:
        """Without waiting; takes_writes must hold."""
        assert self.takes_writes, "a third write"
        with self._changed:
            self._writes += 1
            self._others.append(_Write(file, kv, budget_bytes))
            self._changed.notify()

    def taken(self) -> None:
        """A RawGroup with K/V was taken in: another may come."""
        with self._changed:
            self._credits += 1
            self._changed.notify()

    def close(self, timeout_s: float) -> None:
        """End the thread once what is ordered is done, but for reads; give the folder back."""
        with self._changed:
            self._ending = True
            self._reads.clear()
            self._changed.notify()
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            self._folder.close()

    # On the thread.

    def _run(self) -> None:
        if self._write_down(self._open):
            self._tell_all()
        while (order := self._next()) is not None:
            match order:
                case Read():
                    self._read_all(order)
                case Erase():
                    self._erase(order)
                case Touch(keys):
                    self._write_down(lambda keys=keys: self._journal.use(keys))  # type: ignore[misc]
                case _Write():
                    self._write(order)

    def _open(self) -> None:
        """Read the journal; where there is less room than before, the least recently used go."""
        journal = self._journal
        journal.load()
        left = sum(file.size for file in journal.files.values())
        gone = []
        for key, file in journal.files.items():
            if left <= self._bytes_max:
                break
            left -= file.size
            gone.append(key)
        for key in gone:
            self._folder.remove(file_name(key))
        journal.remove(gone)

    def _tell_all(self) -> None:
        """A few at a time: whoever takes them in has other things to do."""
        files, budget = list(self._journal.files.values()), self._journal.budget_bytes
        for start in range(0, len(files), FOUND_FILES):
            self._report(FilesFound(tuple(files[start : start + FOUND_FILES])))
        self._report(FilesFound((), budget))

    def _next(self) -> Read | Erase | Touch | _Write | None:
        with self._changed:
            while not (self._reads or self._others or self._ending):
                self._changed.wait()
            if self._reads:
                order = self._reads.popleft()
                self._reading = order.id
                return order
            return self._others.popleft() if self._others else None

    def _read_all(self, read: Read) -> None:
        for group in read.groups:
            if not self._may_read(read.id):
                break
            raw = self._read(read.id, group)
            self._report(raw)
            if raw.kv is None:
                break
        with self._changed:
            self._reading = None
            self._stopped.discard(read.id)

    def _may_read(self, id: int) -> bool:
        """Waits until somebody can take a group; False: nobody waits for it any more."""
        with self._changed:
            while not (self._credits or self._ending or id in self._stopped):
                self._changed.wait()
            if self._ending or id in self._stopped:
                return False
            self._credits -= 1
            return True

    def _read(self, id: int, group: ReadGroup) -> RawGroup:
        began, total = time.monotonic(), 0
        kv: dict[Kind, list[memoryview]] = {"full": [], "sliding": []}
        for file in group.files:
            found, damaged = (None, False) if self._failed else self._read_file(file)
            if found is None:
                self.taken()
                bad = () if self._failed else (file.key,)
                return RawGroup(id, group, None, bad=bad, quarantined=int(damaged))
            kv[file.kind].append(found)
            total += file.size
        whole: dict[Kind, tuple[memoryview, ...]] = {k: tuple(v) for k, v in kv.items()}
        return RawGroup(id, group, whole, total, time.monotonic() - began)

    def _read_file(self, file: DiskFile) -> tuple[memoryview | None, bool]:
        """Its K/V, and whether it is damaged; neither: it is not there."""
        name = file_name(file.key)
        try:
            data = self._folder.read(name, file.size + 1)
        except FileNotFoundError:
            data = None
        except OSError:
            data = b""
        kv = None if data is None else verified(file, self._layouts[file.kind], data)
        if kv is not None:
            return kv, False
        if data is not None and not self._write_down(lambda: self._folder.quarantine(name)):
            self._strays.add(name)
        self._write_down(lambda: self._journal.remove([file.key]))
        return None, data is not None

    def _write(self, order: _Write) -> None:
        file = order.file
        whole = not self._failed and self._write_down(lambda: self._write_file(order))
        if not whole:
            name = file_name(file.key)
            self._strays |= {name, name + NEW}
        self._writes -= 1
        self._report(Written(file.key, whole))

    def _write_file(self, order: _Write) -> None:
        file, layout = order.file, self._layouts[order.file.kind]
        assert file.size == HEAD_BYTES + layout.nbytes, f"{file.size} bytes of {layout}"
        self._folder.write(file_name(file.key), file_head(file.key, layout, order.kv), order.kv)
        self._journal.add(file, order.budget_bytes)

    def _write_down(self, work: Callable[[], None]) -> bool:
        """Whether it went well; the first time that it does not is the last."""
        try:
            work()
        except OSError as error:
            if not self._failed:
                self._failed = True
                _log.warning("prefixes are kept in memory alone from now on: %s", error.strerror)
                self._report(DiskFailed())
            return False
        return True

    def _erase(self, order: Erase) -> None:
        keys = list(self._journal.files) if order.files is None else [f.key for f in order.files]
        names = {file_name(key): None for key in keys}
        if order.aside:
            names |= dict.fromkeys(self._strays)
        stay = {name for name in names if not self._removed(name)}
        self._strays = (self._strays - names.keys()) | stay
        left = len(stay)
        if order.files is None:
            left += not self._write_down(self._erase_rest)
        if order.aside:
            left += not self._write_down(self._folder.release_quarantine)
        if not left and (keys or order.files is None):
            anew = order.id is not None
            left += not self._write_down(lambda: self._journal.remove(keys, anew=anew))
        if order.id is not None:
            self._report(Erased(order.id, left))

    def _removed(self, name: str) -> bool:
        return self._write_down(lambda: self._folder.remove(name))

    def _erase_rest(self) -> None:
        """What no journal knows of: left of a write that failed, or of a process before."""
        for name in self._folder.names():
            self._folder.remove(name)

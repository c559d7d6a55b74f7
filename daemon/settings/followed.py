"""Files that are read again where they change, while the daemon serves.

- What cannot be read leaves what was read before, with one line in the log for each change: half a
  file, or none, locks nobody out and lets nobody in.
- A change is seen by time of writing, size and inode, so a file that is replaced counts too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

from sapwood.daemon.errors import StartError

_T = TypeVar("_T")
Signature = tuple[tuple[int, int, int], ...]

_log = logging.getLogger(__name__)


def signature_of(paths: Iterable[Path]) -> Signature:
    """Differs where a file was written or replaced. Raises OSError."""
    found = [path.stat() for path in paths]
    return tuple((status.st_mtime_ns, status.st_size, status.st_ino) for status in found)


class Followed(Generic[_T]):
    """What files say. `value` is replaced whole and may be read from any thread."""

    def __init__(self, paths: Iterable[Path], read: Callable[[], _T]) -> None:
        """Reads for the first time: raises what `read` raises, StartError for bad files."""
        self._paths = tuple(paths)
        self._read = read
        self._seen = self._signature()  # before: what changes meanwhile is read once more
        self.value = read()

    def follow(self) -> bool:
        """Read what changed; whether there is a new value. Called by one thread at a time."""
        now = self._signature()
        if now == self._seen:
            return False
        self._seen = now
        try:
            self.value = self._read()
        except StartError as error:
            _log.warning("%s; what was read before stays", error)
            return False
        return True

    def _signature(self) -> Signature:
        try:
            return signature_of(self._paths)
        except OSError:
            return ()

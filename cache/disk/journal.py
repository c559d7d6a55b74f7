"""Which files there are and when they were used, as lines that are appended.

- Each line has a checksum of its own. A line that is torn or damaged is as if it had never been:
  then a file is not known, and goes, or is known and not there, and is forgotten.
- A file's line comes after the file, its end before: so what is known and there is whole.
- The order of the lines is the order of use; no clock has a part in it.
- Written anew when it has grown far beyond what it says, and where something is to be forgotten.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import cast
from zlib import crc32

from sapwood.cache.disk.block_file import file_name
from sapwood.cache.disk.folder import JOURNAL, Folder
from sapwood.cache.prefix.blocks import NAME_BYTES
from sapwood.cache.prefix.catalogue import DISK_KINDS, DiskFile, Key, Kind

JOURNAL_BYTES_MAX = 1 << 30
_SPARE_LINES = 50_000  # beside four for each file
_ADDED, _USED, _GONE, _BUDGET = "+", "^", "-", "="


class Journal:
    """The journal of an open folder. Raises OSError as the folder does."""

    def __init__(self, folder: Folder, budget_bytes: int) -> None:
        """Knows nothing before load(). budget_bytes: that may be written, where it does not say."""
        self._folder = folder
        self.files: OrderedDict[Key, DiskFile] = OrderedDict()  # least recently used first
        self.budget_bytes = budget_bytes
        self._lines = 0

    def load(self) -> None:
        """Read what there is; what it does not know is removed, what is not there forgotten."""
        data = b""
        with suppress(FileNotFoundError):
            data = self._folder.read(JOURNAL, JOURNAL_BYTES_MAX)
        for words in _lines(data):
            self._lines += 1
            with suppress(ValueError, IndexError):
                self._apply(words)
        there = self._folder.names()
        known = {file_name(key): key for key in self.files}
        for name in known.keys() - there:
            del self.files[known[name]]
        for name in there - known.keys():
            self._folder.remove(name)
        if data[-1:] not in (b"", b"\n"):
            self._folder.append(JOURNAL, b"\n")  # or a torn line would take the next one along

    def add(self, file: DiskFile, budget_bytes: int) -> None:
        """The file is there."""
        self.files[file.key] = file
        self.budget_bytes = budget_bytes
        self._append(_line(file), f"{_BUDGET} {budget_bytes}")

    def use(self, keys: Iterable[Key]) -> None:
        """They were used, in this order."""
        known = [key for key in keys if key in self.files]
        for key in known:
            self.files.move_to_end(key)
        self._append(*(f"{_USED} {name.hex()} {kind}" for name, kind in known))

    def remove(self, keys: Iterable[Key], *, anew: bool = False) -> None:
        """Their files are gone. anew: and no line of before tells of them."""
        known = [key for key in keys if self.files.pop(key, None) is not None]
        if anew:
            self.rewrite()
        else:
            self._append(*(f"{_GONE} {name.hex()} {kind}" for name, kind in known))

    def rewrite(self) -> None:
        """Say the same in as few lines as can be."""
        lines = [f"{_BUDGET} {self.budget_bytes}", *map(_line, self.files.values())]
        self._folder.write(JOURNAL, b"".join(map(_sealed, lines)))
        self._lines = len(lines)

    def _append(self, *lines: str) -> None:
        if not lines:
            return
        self._folder.append(JOURNAL, b"".join(map(_sealed, lines)))
        self._lines += len(lines)
        if self._lines > 4 * len(self.files) + _SPARE_LINES:
            self.rewrite()

    def _apply(self, words: list[str]) -> None:
        """Raises ValueError or IndexError for what no line of ours says."""
        if words[0] == _BUDGET:
            self.budget_bytes = int(words[1])
            return
        key = bytes.fromhex(words[1]), cast("Kind", words[2])
        if key[1] not in DISK_KINDS or len(key[0]) != NAME_BYTES:
            raise ValueError(words[2])
        if words[0] == _ADDED:
            path, above, tenant = map(bytes.fromhex, words[3:6])
            self.files[key] = DiskFile(*key, path, above, tenant, int(words[6]))
            self.files.move_to_end(key)
        elif words[0] == _GONE:
            self.files.pop(key, None)
        elif key in self.files:
            self.files.move_to_end(key)


def _line(file: DiskFile) -> str:
    named = file.name.hex(), file.kind, file.path.hex(), file.above.hex(), file.tenant.hex()
    return f"{_ADDED} {' '.join(named)} {file.size}"


def _sealed(line: str) -> bytes:
    data = line.encode()
    return b"%08x %s\n" % (crc32(data), data)


def _lines(data: bytes) -> Iterator[list[str]]:
    """The words of each line that is whole."""
    for line in data.split(b"\n"):
        with suppress(ValueError):
            if int(line[:8], 16) == crc32(line[9:]) and line[9:]:
                yield line[9:].decode("ascii").split(" ")

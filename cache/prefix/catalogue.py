"""Which blocks lie on disk: the index over a folder's files, within its bytes.

- A file is one block's K/V of one kind of layer. What is listed was written whole; whether it still
  is says whoever reads it.
- Least recently used first: where room is short, and of a path its end before its beginning.
- What is being written counts as if it were there, and is found only once it is. Each write is told
  of once, in order; what was forgotten and begun anew meanwhile is there once the last of them is.
- No block is here without the one before it: with the last file of a block goes all behind it. So
  what begins with a prefix can be found.
- The catalogue changes nothing on disk: it says what is to go.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from sapwood.cache.prefix.blocks import Block

Kind = Literal["full", "sliding"]
DISK_KINDS: tuple[Kind, ...] = get_args(Kind)
Key = tuple[bytes, Kind]  # a block's name and a kind
HEAD_BYTES = 512  # of a file, before its K/V


@dataclass(frozen=True, slots=True)
class DiskFile:
    """One file. path, above: as in Block. tenant: as Names says it."""

    name: bytes
    kind: Kind
    path: bytes
    above: bytes
    tenant: bytes
    size: int

    @property
    def key(self) -> Key:
        """What it is found by."""
        return self.name, self.kind


class DiskReach(NamedTuple):
    """Blocks [first, last) that are to be read, sliding K/V too from `sliding` on."""

    first: int
    sliding: int
    last: int


class Catalogue:
    """The files of one folder. Single-threaded, like all that is pure."""

    def __init__(self, bytes_max: int, top: bytes, files: Iterable[DiskFile] = ()) -> None:
        """top: Names.top. files: least recently used first; see adrift()."""
        self.bytes_max = bytes_max
        self.bytes: dict[Kind, int] = dict.fromkeys(DISK_KINDS, 0)  # written, or being written
        self._top = top
        self._files: OrderedDict[Key, DiskFile] = OrderedDict()
        self._coming: dict[Key, DiskFile] = {}
        self._untold: Counter[Key] = Counter()  # writes that were begun, forgotten or not
        # Of all that was begun: by `path`, and by `above`.
        self._at: dict[bytes, set[Key]] = {}
        self._below: dict[bytes, set[Key]] = {}
        self.add(files)

    def __len__(self) -> int:
        return len(self._files)

    def add(self, files: Iterable[DiskFile]) -> None:
        """They were found, least recently used first, and all before them less recently."""
        for file in files:
            self._files[file.key] = file
            self._count(file)

    def find(self, name: bytes, kind: Kind) -> DiskFile | None:
        """A file that was written."""
        return self._files.get((name, kind))

    def knows(self, name: bytes, kind: Kind) -> bool:
        """Whether it was written, or is being written."""
        return (name, kind) in self._files or (name, kind) in self._coming

    def sizes(self, names: Iterable[bytes]) -> dict[Kind, int]:
        """Bytes of what was written of these blocks."""
        found: dict[Kind, int] = dict.fromkeys(DISK_KINDS, 0)
        for name in names:
            for kind in DISK_KINDS:
                file = self.find(name, kind)
                found[kind] += file.size if file is not None else 0
        return found

    def touch(self, blocks: Sequence[Block]) -> list[Key]:
        """A path was used, from 0 on: its beginning was used last. Returns what moved, in order."""
        keys = [(b.name, kind) for b in reversed(blocks) for kind in DISK_KINDS]
        moved = [key for key in keys if key in self._files]
        for key in moved:
            self._files.move_to_end(key)
        return moved

    def begin(self, file: DiskFile, kept: Container[bytes] = ()) -> tuple[bool, list[DiskFile]]:
        """A file is to be written. Whether it may be, and what goes for it, forgotten here.

        kept: `path` of blocks that do not go. It may not where there is no room, or the block
        before it is not here.
        """
        assert not self.knows(*file.key), "a file is written twice"
        gone: list[DiskFile] = []
        if file.above != self._top and file.above not in self._at:
            return False, gone
        while sum(self.bytes.values()) + file.size > self.bytes_max:
            old = next((key for key, f in self._files.items() if f.path not in kept), None)
            if old is None:
                return False, gone
            gone += self.forget(old)
        self._coming[file.key] = file
        self._untold[file.key] += 1
        self._count(file)
        return True, gone

    def written(self, key: Key, *, whole: bool) -> DiskFile | None:
        """What was begun is there, and given back; or it is not, or was forgotten meanwhile."""
        assert self._untold[key], "nobody began that write"
        self._untold[key] -= 1
        if self._untold[key]:
            return None  # of a write before that one: its file goes first
        del self._untold[key]
        file = self._coming.get(key)
        if file is not None and whole:
            self._files[key] = self._coming.pop(key)
            return file
        self.forget(key)
        return None

    def forget(self, key: Key) -> list[DiskFile]:
        """It is to go, or is gone; and all behind it, where its block has no other file."""
        gone: list[DiskFile] = []
        keys = [key]
        while keys:
            file = self._take(keys.pop())
            if file is not None:
                gone.append(file)
                if file.path not in self._at:
                    keys += self._below.get(file.path, ())
        return gone

    def adrift(self) -> list[DiskFile]:
        """Forget what has no block before it: of another salt, or behind what was lost."""
        gone: list[DiskFile] = []
        for above in list(self._below):
            if above != self._top and above not in self._at:
                gone += self._forget(self._below.get(above, ()))
        return gone

    def forget_all(self) -> list[DiskFile]:
        """All are to go."""
        return self._forget([*self._files, *self._coming])

    def forget_tenants(self, gone: Callable[[bytes], bool]) -> list[DiskFile]:
        """All that is of tenants of whom `gone` says so is to go."""
        known = [*self._files.values(), *self._coming.values()]
        return self._forget(file.key for file in known if gone(file.tenant))

    def forget_own(self, blocks: Sequence[Block], tenant: bytes) -> list[DiskFile]:
        """Of one tenant's path: its last block and those before it go, as far as they lead nowhere
        else of the tenant's.

        blocks: that may go, in order; they end where the path does.
        """
        gone: list[DiskFile] = []
        for block in reversed(blocks):
            if any(self._tenant_of(key) == tenant for key in self._below.get(block.path, ())):
                break
            gone += self._forget((block.name, kind) for kind in DISK_KINDS)
        return gone

    def forget_path(self, paths: Sequence[bytes]) -> list[DiskFile]:
        """What begins with these blocks is to go, under whatever root (Names.paths).

        All behind the last of them; then it and those before it, as far as they lead nowhere else.
        """
        gone = self._forget(self._below.get(paths[-1], ()))
        for path in reversed(paths[1:]):
            if path in self._below:
                break
            gone += self._forget(self._at.get(path, ()))
        return gone

    def reach(
        self, blocks: Sequence[Block], tokens: int, matched: int, window: int
    ) -> DiskReach | None:
        """The longest prefix that can be restored once what is missing of it is read.

        blocks: of a prompt, from 0 on. Memory has the full K/V of `matched` tokens, and can restore
        `tokens` of them. None where the disk helps no further than that.
        """
        if not blocks:
            return None
        size = blocks[0].end
        first = last = min(matched // size, len(blocks))
        while last < len(blocks) and self.find(blocks[last].name, "full"):
            last += 1
        for end in range(last, tokens // size, -1):
            sliding = max(0, end * size - window) // size if window else end
            if all(self._whole(block) for block in blocks[sliding:end]):
                return DiskReach(min(first, sliding), sliding, end)
        return None

    def _tenant_of(self, key: Key) -> bytes:
        file = self._files.get(key) or self._coming[key]
        return file.tenant

    def _whole(self, block: Block) -> bool:
        return all(self.find(block.name, kind) is not None for kind in DISK_KINDS)

    def _forget(self, keys: Iterable[Key]) -> list[DiskFile]:
        return [file for key in list(keys) for file in self.forget(key)]

    def _take(self, key: Key) -> DiskFile | None:
        file = self._coming.pop(key, None) or self._files.pop(key, None)
        if file is not None:
            self.bytes[file.kind] -= file.size
            for index, where in ((self._at, file.path), (self._below, file.above)):
                index[where].discard(key)
                if not index[where]:
                    del index[where]
        return file

    def _count(self, file: DiskFile) -> None:
        self._at.setdefault(file.path, set()).add(file.key)
        self._below.setdefault(file.above, set()).add(file.key)
        self.bytes[file.kind] += file.size

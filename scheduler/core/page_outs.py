"""What of the tree is copied to disk, block by block, behind everybody's back.

- What is stored up to the end of a prompt or a reply is due then: its full K/V, and the sliding K/V
  of the windows before its end, before turns' ends and where paths part. That is what the tree
  itself keeps when memory is short; all sliding K/V would be ten times as much.
- A block is written once. What the tree has lost by the time of its turn, or was told to clear, is
  not written. Nothing is held for it: no lease, no copy.
- No more is written than bytes_a_day: a budget that fills by the engine's clock, and goes on over
  restarts from where it was. However far that clock jumps, it fills to one day's and no further;
  where it goes back, not before it is as late again.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sapwood.cache.prefix.blocks import Block
from sapwood.cache.prefix.catalogue import HEAD_BYTES, DiskFile, Kind
from sapwood.cache.prefix.snapshot import Payload
from sapwood.cache.prefix.tree import Tree
from sapwood.scheduler.disk import DiskFolder, DiskOrder, Erase, PageOut, Touch, Written, kv_on_disk

DAY_S = 86400.0
DUE_MAX = 64  # paths; the oldest are given up


class WriteBudget:
    """Bytes that may be written: at most a day's, and as many more in each day."""

    def __init__(self, bytes_a_day: int, left: int) -> None:
        self.a_day = bytes_a_day
        self._left = float(min(left, bytes_a_day))
        self._at: float | None = None

    def left(self, now: float) -> int:
        """As of now."""
        at = now if self._at is None else max(now, self._at)
        if self._at is not None:
            grown = self._left + (at - self._at) * self.a_day / DAY_S
            self._left = min(float(self.a_day), grown)
        self._at = at
        return int(self._left)

    def spend(self, size: int) -> None:
        """So much is written."""
        self._left -= size


@dataclass(slots=True)
class _Path:
    """tokens: up to where it is due. left: what of it may be missing on disk; None: not known."""

    root: bytes
    tokens: array[int]
    left: deque[tuple[Block, Kind]] | None = None
    blocks: list[Block] = field(default_factory=list)


class PageOuts:
    """What is due. Single-threaded, like all of the core."""

    def __init__(
        self,
        tree: Tree,
        folder: DiskFolder,
        bytes_per_token: Mapping[Kind, int],
        order: Callable[[DiskOrder], None],
    ) -> None:
        self._tree, self._names, self._catalogue = tree, folder.names, folder.catalogue
        tokens = folder.names.block_tokens
        self._sizes = {
            kind: HEAD_BYTES + kv_on_disk(tokens * n, folder.kv_share)
            for kind, n in bytes_per_token.items()
            if n
        }
        self._order = order
        self._budget = WriteBudget(folder.bytes_a_day, folder.budget_bytes)
        self._due: deque[_Path] = deque(maxlen=DUE_MAX)
        self.written_bytes = 0

    def __len__(self) -> int:
        return len(self._due)

    def may_write(self, budget_bytes: int) -> None:
        """So much is left of the day's."""
        self._budget = WriteBudget(self._budget.a_day, budget_bytes)

    def stored(self, root: bytes, tokens: array[int], end: int) -> None:
        """A prompt or a reply ended there, and is stored."""
        self._due.append(_Path(root, tokens[:end]))

    def next(self, now: float, spare_bytes: int) -> PageOut | None:
        """What to copy now, before the tree changes. None: nothing is due, or it has to wait.

        spare_bytes: what a copy may take of the device's memory.
        """
        left = self._budget.left(now)
        while self._due:
            path = self._due[0]
            if path.left is None:
                path.left = self._missing(path)
            found = self._first(path, path.left)
            if found is None:
                self._end()
                continue
            block, kind, payloads = found
            size = self._sizes[kind]
            if size > left or size > spare_bytes:
                return None
            path.left.popleft()
            tenant = self._names.tenant(path.root)
            file = DiskFile(block.name, kind, block.path, block.above, tenant, size)
            begun, gone = self._catalogue.begin(file, {each.path for each in path.blocks})
            if gone:
                self._order(Erase(tuple(gone)))
            if begun:
                self._budget.spend(size)
                return PageOut(file, block, payloads, left - size)
            self._end()  # nor is there a place for what lies behind it
        return None

    def take(self, report: Written) -> None:
        """It is on disk, or is not."""
        file = self._catalogue.written(report.key, whole=report.whole)
        if file is not None:
            self.written_bytes += file.size

    def forget(self, tokens: array[int]) -> None:
        """What begins with `tokens` is to go, and not due any more."""
        count = len(tokens)
        self._drop(lambda path: path.tokens[:count] == tokens)

    def forget_own(self, root: bytes, tokens: array[int], kept: int) -> None:
        """What ends on that path behind `kept` is not due any more."""
        self._drop(
            lambda path: (
                path.root == root
                and len(path.tokens) > kept
                and path.tokens == tokens[: len(path.tokens)]
            )
        )

    def forget_root(self, root: bytes) -> None:
        """Nothing under a root key is due any more."""
        self._drop(lambda path: path.root == root)

    def _drop(self, which: Callable[[_Path], bool]) -> None:
        for path in [path for path in self._due if which(path)]:
            self._due.remove(path)

    def _end(self) -> None:
        """The first is written, as far as it could be: its beginning was used last."""
        path = self._due.popleft()
        self._order(Touch(tuple(self._catalogue.touch(path.blocks))))

    def _missing(self, path: _Path) -> deque[tuple[Block, Kind]]:
        """What the disk lacks of a path, from its beginning on; what it has counts as used."""
        root, tokens, end = path.root, path.tokens, len(path.tokens)
        blocks = path.blocks = self._names.blocks(root, tokens, end)
        self._order(Touch(tuple(self._catalogue.touch(blocks))))
        size, window = self._names.block_tokens, self._tree.window
        windows: set[int] = set()
        for worth in self._tree.worth_windows(root, tokens, end):
            last = worth // size
            windows.update(range(max(0, last * size - window) // size, last))
        wanted: list[tuple[Block, Kind]] = []
        for index, block in enumerate(blocks):
            wanted.append((block, "full"))
            if "sliding" in self._sizes and index in windows:
                wanted.append((block, "sliding"))
        return deque(w for w in wanted if not self._catalogue.knows(w[0].name, w[1]))

    def _first(
        self, path: _Path, left: deque[tuple[Block, Kind]]
    ) -> tuple[Block, Kind, tuple[Payload, ...]] | None:
        """The first of them that the tree has; what it has not is dropped."""
        while left:
            block, kind = left[0]
            held = self._tree.cover(path.root, path.tokens, block)
            if not held:
                return None  # nor what lies behind it
            whole = all(p.sliding_start <= max(p.start, block.start) for p in held)
            if (kind == "full" or whole) and not self._catalogue.knows(block.name, kind):
                return block, kind, held
            left.popleft()
        return None

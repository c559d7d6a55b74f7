"""Trees for tests: tokens are letters, and a tree draws itself as text.

- `Garden` owns a Tree, a Tracker and the step, so that a test says only what it is about.
- `draw()` shows one line a node, children indented: a capital letter has sliding K/V, a small one
  only full K/V; then `*` where the end is marked and `+n` for n leases.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

from sapwood.cache.prefix.node import Lease
from sapwood.cache.prefix.tree import Match, Tree
from tests.fakes import Tracker

ROOT = b"root"


Text = str | tuple[int, ...]


def ids(text: Text) -> tuple[int, ...]:
    if isinstance(text, tuple):
        return text
    return tuple(text.lower().encode())


class Inserted(NamedTuple):
    """What an extend changed, seen from outside: the tree's bytes and tokens, and its shape."""

    new_bytes: int
    new_tokens: int
    split: bool


class Garden:
    """A tree whose every payload is tracked."""

    def __init__(self, window: int = 3, nodes_max: int = 1000, merge_tokens_max: int = 100) -> None:
        self.tree = Tree(window, nodes_max, merge_tokens_max)
        self.tracker = Tracker()
        self.now = 0

    def step(self) -> int:
        self.now += 1
        return self.now

    def match(self, text: Text, limit: int | None = None, root: bytes = ROOT) -> Match:
        """Match; T2: nothing observable changes."""
        before = list(self.tree.describe(tokens=True))
        found = self.tree.match(root, ids(text), limit)
        assert list(self.tree.describe(tokens=True)) == before
        return found

    def lease(self, text: Text, end: int | None = None, root: bytes = ROOT) -> Lease:
        """Lease [0, end) of `text`; without `end`, all that a longer prompt could restore."""
        tokens = ids(text)
        if end is None:
            end = self.tree.match(root, (*tokens, 0)).tokens
        return self.tree.lease(root, tokens, end, self.step())

    def extend(
        self,
        lease: Lease,
        text: Text,
        start: int | None = None,
        sliding: int | None = None,
        turn_end: bool = False,
    ) -> Inserted:
        """Store `text` from `start` (the lease's end), with sliding K/V of the last `sliding`."""
        start = lease.end if start is None else start
        sliding_start = start if sliding is None else len(text) - sliding
        log = self.tracker.log(ids(text), start, len(text), sliding_start)
        before, splits = self._size(), self.tree.splits
        self.tree.extend(lease, ids(text), log, self.step(), turn_end=turn_end)
        (bytes_before, tokens_before), (bytes_now, tokens_now) = before, self._size()
        return Inserted(
            bytes_now - bytes_before, tokens_now - tokens_before, self.tree.splits > splits
        )

    def _size(self) -> tuple[int, int]:
        views = list(self.tree.describe())
        return self.tree.bytes, sum(view.end - view.start for view in views)

    def say(self, text: Text, root: bytes = ROOT) -> None:
        """A whole turn: restore what is here, compute the rest, end."""
        lease = self.lease(text, root=root)
        if lease.end:
            self.tree.hit(lease)
        if lease.end < len(text):
            self.extend(lease, text)
        self.tree.release(lease, self.step())

    def evict(self, bytes_wanted: int) -> dict[str, int]:
        """What went, and how many nodes by which cause."""
        before = self.tree.evictions
        freed = self.tree.evict(bytes_wanted, self.step())
        counts = {str(c): n - before[c] for c, n in self.tree.evictions.items() if n > before[c]}
        return {"freed": freed} | counts

    def draw(self) -> str:
        """The drawing, after a check of everything."""
        self.check()
        lines: list[tuple[tuple[int, ...], str]] = []
        indent: dict[int | None, int] = {None: -1}
        path: dict[int | None, tuple[int, ...]] = {None: ()}
        for view in self.tree.describe(tokens=True):
            assert view.tokens is not None
            depth, text = indent[view.parent] + 1, bytes(view.tokens).decode()
            thinned = view.sliding_start - view.start
            text = text[:thinned] + text[thinned:].upper()
            marks = "*" * view.marked + (f"+{view.leases}" if view.leases else "")
            indent[view.id] = depth
            path[view.id] = path[view.parent] + view.tokens
            if view.parent is not None:
                lines.append((path[view.id], "  " * (depth - 1) + text + marks))
        return "\n".join(line for _, line in sorted(lines))

    def check(self) -> None:
        self.tree.check()
        assert self.tracker.created == self.tracker.closed + len(self.tracker.live)
        assert len(self.tracker.live) == self.tree.nodes, "T7: a payload leaked"

    def ages(self) -> dict[str, int]:
        """Ages by the last letter of the node's path; `-` is the root."""
        views = self.tree.describe(tokens=True)
        return {
            bytes(view.tokens[-1:]).decode() if view.tokens else "-": view.age for view in views
        }


def drawing(text: str) -> str:
    """A drawing as it is written in a test, between triple quotes."""
    lines = text.strip("\n").splitlines()
    margin = len(lines[0]) - len(lines[0].lstrip()) if lines else 0
    return "\n".join(line[margin:] for line in lines if line.strip())


def lines_run(action: Callable[[], object]) -> int:
    """How many lines of cache/ `action` runs: a measure of work that no clock disturbs."""
    count = 0

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal count
        if not frame.f_globals["__name__"].startswith("sapwood.cache."):
            return None
        count += event == "line"
        return trace

    outer = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(outer)
    return count

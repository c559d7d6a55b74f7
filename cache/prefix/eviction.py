"""What goes first when memory is short.

- A *kept end* is where a sequence can go on right now: at a leaf, at a marked node (a turn ended
  or paths parted there), at a live lease's end.
- Sliding K/V that no kept end reads is slack: it goes first, that of the oldest node first.
- Then, least recently used first: leaves, and the windows of marked nodes. A leaf whose end
  cannot be restored helps nobody and goes before all others.
- Last, and only as far as asked, the windows that live leases stand on, but for those that are
  due to be restored. Full K/V of a leased node never goes, and no node with children goes: there
  are no orphans.
- Nothing merges here: a merge copies, and memory is what we lack. Releases do it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heappop, heappush

from sapwood.cache.prefix.ghosts import Ghosts
from sapwood.cache.prefix.node import EvictionCause, Node, Room, Totals, weigh
from sapwood.cache.prefix.radix import detach, preorder, trail
from sapwood.cache.prefix.restore import restorable

# A pass looks at every node, so it pays for itself by freeing this share of what could go.
PASS_SHARE = 1 / 32


def _oldest_first(node: Node) -> tuple[int, int, int]:
    """Least recently used, then the deepest, then the largest."""
    return node.age, -node.end, -node.stored.full_bytes - node.stored.sliding_bytes


class Eviction:
    """One pass over the tree: looks at every node once, then frees in order."""

    def __init__(self, roots: Iterable[Node], totals: Totals, ghosts: Ghosts, window: int) -> None:
        self._totals, self._ghosts, self._window = totals, ghosts, window
        order = list(preorder(roots))
        self._nodes = [node for node in order if node.parent]
        self._kept = self._restorable_ends(order)
        self._need: dict[Node, int] = {}
        for node in reversed(self._nodes):
            self._need[node] = self._needed(node)
        self._queue: list[tuple[tuple[int, int, int], int, Node]] = []
        self._queued: set[Node] = set()
        self._bytes, self._buffers = totals.bytes, totals.buffers

    @property
    def freed(self) -> int:
        """Bytes, so far."""
        return self._bytes - self._totals.bytes

    def free(self, wanted: Room, goal: Room) -> None:
        """Free `goal` as long as that takes no window from a lease, and `wanted` anyway."""
        self._thin_slack(goal)
        self._drop_oldest(lambda: self._has(goal), "evicted", windows=True)
        self._thin_leased(wanted)

    def shrink(self, nodes: int) -> None:
        """Drop leaves until at most `nodes` are left, or all that are left are leased."""
        self._drop_oldest(lambda: self._totals.nodes <= nodes, "crowded", windows=False)

    def clear(self) -> None:
        """Drop all that nobody leases."""
        for node in reversed(self._nodes):
            if not node.leases:
                self._drop(node, "cleared")

    def _restorable_ends(self, order: Iterable[Node]) -> set[Node]:
        """The leaves and marked nodes whose end can be restored; one walk from the top."""
        kept: set[Node] = set()
        since: dict[Node, int] = {}  # where the gapless sliding K/V before the node's end begins
        for node in order:
            if node.parent is None:
                since[node] = 0
                continue
            start = node.stored.sliding_start
            since[node] = since[node.parent] if start == node.start else start
            end_matters = node.marked or not node.children
            if end_matters and since[node] <= max(0, node.end - self._window):
                kept.add(node)
        return kept

    def _needed(self, node: Node) -> int:
        """Where the sliding K/V begins that kept ends at or below `node` read.

        Before the edge means all of it, at the edge's end or past it nothing.
        """
        ends = [lease.end for lease in node.landed if restorable(node, lease.end, self._window)]
        if node in self._kept:
            ends.append(node.end)
        if ends:  # any end below this node lies further on, so it reads less of this edge
            return min(ends) - self._window
        return min((self._need[child] for child in node.children.values()), default=node.end)

    def _has(self, room: Room) -> bool:
        buffers = self._buffers - self._totals.buffers
        return self.freed >= room.bytes and buffers >= room.buffers

    def _thin_slack(self, goal: Room) -> None:
        slack = [
            node
            for node in self._nodes
            if node.stored.sliding_start < min(self._need[node], node.end)
        ]
        for node in sorted(slack, key=_oldest_first):
            if self._has(goal):
                return
            self._thin(node, self._need[node])

    def _thin_leased(self, wanted: Room) -> None:
        due = {
            above
            for node in self._nodes
            for lease in node.landed
            if lease.due
            for above in trail(node)
        }
        leased = [node for node in self._nodes if node.leases and node not in due]
        for node in sorted(leased, key=_oldest_first):
            if self._has(wanted):
                return
            self._thin(node, node.end)

    def _thin(self, node: Node, start: int) -> None:
        start = min(max(start, node.start), node.end)
        if node.stored.sliding_start >= start:
            return
        was = weigh(node)
        node.payload = node.stored.thin(start)
        self._totals.move(was, weigh(node))
        self._totals.evictions["thinned"] += 1

    def _drop_oldest(self, enough: Callable[[], bool], cause: EvictionCause, windows: bool) -> None:
        """Drop leaves, and windows of marked nodes where `windows`, oldest first."""
        for node in self._nodes:
            if not node.children or (windows and node in self._kept):
                self._enqueue(node)
        while self._queue and not enough():
            node = heappop(self._queue)[-1]
            self._queued.remove(node)
            if node.children:
                node.marked = False
                self._kept.remove(node)
                self._settle(node)
                continue
            parent = node.above
            self._drop(node, cause)
            if parent.parent and not parent.children:
                if restorable(parent, parent.end, self._window):
                    self._kept.add(parent)
                self._enqueue(parent)
            if windows:
                self._settle(parent)

    def _enqueue(self, node: Node) -> None:
        """Queue a node that nobody leases; one that waits already keeps its place."""
        if node.leases or node in self._queued:
            return
        age, deepest, largest = _oldest_first(node)
        useless = not node.children and node not in self._kept
        heappush(self._queue, ((-1 if useless else age, deepest, largest), node.id, node))
        self._queued.add(node)

    def _drop(self, leaf: Node, cause: EvictionCause) -> None:
        self._ghosts.remember(leaf)
        detach(leaf, self._totals)
        self._totals.evictions[cause] += 1

    def _settle(self, node: Node) -> None:
        """A kept end at or below `node` is gone: thin what only that end had read."""
        while node.parent:
            need = self._needed(node)
            self._thin(node, need)
            if need == self._need[node]:
                return
            self._need[node], node = need, node.parent

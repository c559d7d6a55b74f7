"""What goes first when memory is short.

- A *kept end* is where a sequence can go on right now: at a leaf, at a marked node (a turn ended
  or paths parted there), at a live lease's end.
- Sliding K/V that no kept end reads is slack: it goes first, that of the oldest node first.
- Then what is worth least (worth.py): leaves, and the windows of marked nodes. A leaf whose end
  cannot be restored helps nobody and goes before all others.
- Last, and only as far as asked, the windows that live leases stand on, but for those of pins and
  those that are due to be restored. Full K/V of a leased node never goes, and no node with children
  goes: there are no orphans.
- In a tree of up to EXACT_NODES all of it holds to the letter. In a larger one a pass looks at a
  few nodes for each one that goes, and takes the first of these and of the best it saw before: its
  cost is that of what it frees, however many nodes there are. (So Redis approximates LRU.)
- Where there are too many nodes, leaves go, least recently used first.
- Nothing merges here: a merge copies, and memory is what we lack. Releases do it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush, nsmallest
from itertools import islice

from sapwood.cache.prefix.ghosts import Ghosts
from sapwood.cache.prefix.leases import PIN_MARGIN_TOKENS
from sapwood.cache.prefix.node import EvictionCause, Lease, Node, Room, Totals, weigh
from sapwood.cache.prefix.radix import detach, trail
from sapwood.cache.prefix.restore import longest_restorable, restorable
from sapwood.cache.prefix.worth import ReuseRates

EXACT_NODES = 64
# Of a larger tree: looked at for each that goes, and remembered of all that were looked at.
LOOKED_NODES, POOL_NODES = 12, 64
# Freed at least in a pass, so that not every reservation begins one: the smaller of the two.
PASS_SHARE, PASS_NODES = 1 / 32, 4

# Of a window's edges and of an edge's readers, in what an end is charged with: so many are told.
SEGMENTS_MAX, READERS_MAX = 16, 16

_Order = tuple[int, float, int, int]  # tier, age or worth, deepest, largest: the least goes first
_SLACK, _END = 0, 1


class Eviction:
    """What of one tree goes next. Remembers what it looked at; the tree may change meanwhile."""

    def __init__(self, totals: Totals, ghosts: Ghosts, rates: ReuseRates, window: int) -> None:
        self._totals, self._ghosts, self._rates = totals, ghosts, rates
        self._window = window
        self._pool: list[tuple[_Order, int, Node]] = []  # a heap; orders may be out of date
        self._pooled: set[int] = set()
        self._looks = 0

    def free(self, wanted: Room, evictable: Room) -> int:
        """Free `wanted` of what can go, and somewhat more; returns the bytes freed."""
        totals = self._totals
        bytes_, buffers = totals.bytes, totals.buffers
        goal = Room(*map(self._goal, wanted, evictable))

        def has(room: Room) -> bool:
            freed = bytes_ - totals.bytes, buffers - totals.buffers
            return freed[0] >= room.bytes and freed[1] >= room.buffers

        self._take_first(lambda: has(goal), windows=True)
        self._thin_leased(lambda: has(wanted))
        return bytes_ - totals.bytes

    def shrink(self, nodes: int) -> None:
        """Drop leaves until at most `nodes` are left, or all that are left are leased."""
        self._take_first(lambda: self._totals.nodes <= nodes, windows=False)

    def drop(self, leaf: Node, cause: EvictionCause) -> None:
        """Drop a leaf that nobody leases."""
        self._ghosts.remember(leaf)
        detach(leaf, self._totals)
        self._totals.evictions[cause] += 1

    def _goal(self, wanted: int, evictable: int) -> int:
        """Nothing of what is not short."""
        few = evictable * PASS_NODES // max(1, self._totals.nodes)
        return wanted and max(wanted, min(int(evictable * PASS_SHARE), few))

    # Who is looked at.

    def _take_first(self, enough: Callable[[], bool], windows: bool) -> None:
        """Take what goes first, again and again. windows: also slack, and windows alone."""
        if not windows or self._totals.nodes <= EXACT_NODES:
            self._forget_pool()
        everything = False
        while not enough():
            if not everything:
                everything = self._look(windows)
            if (first := self._next(windows)) is not None:
                self._take(*first, windows)
            elif everything:
                return
            else:
                self._look_at(self._totals.listed, windows)
                everything = True
        if not windows:
            self._forget_pool()

    def _look(self, windows: bool) -> bool:
        """Look at some more nodes; whether all there are have been looked at."""
        if self._totals.nodes <= EXACT_NODES:
            self._look_at(self._totals.listed, windows)
            return True
        self._look_at(self._some(), windows)
        if len(self._pool) > 2 * POOL_NODES:
            self._pool = nsmallest(POOL_NODES, self._pool)
            self._pooled = {id for _, id, _ in self._pool}
        return False

    def _some(self) -> Iterator[Node]:
        """A few nodes, by a sequence that comes to all of them evenly."""
        listed = self._totals.listed
        for _ in range(LOOKED_NODES):
            self._looks = (self._looks + 0x9E3779B9) & 0xFFFFFFFF  # 2^32 over the golden ratio
            yield listed[self._looks * len(listed) >> 32]

    def _look_at(self, nodes: Iterable[Node], windows: bool) -> None:
        looked = list(nodes)
        for node in looked:  # all of them first: those that are alike are to be judged alike
            self._rates.expose(node)
        for node in looked:
            self._offer(node, windows)

    def _offer(self, node: Node, windows: bool) -> None:
        if node.id not in self._pooled and (order := self._order(node, windows)) is not None:
            heappush(self._pool, (order, node.id, node))
            self._pooled.add(node.id)

    def _next(self, windows: bool) -> tuple[Node, _Order] | None:
        """The first of those that were looked at, as they are now."""
        while self._pool:
            told, id, node = heappop(self._pool)
            self._pooled.remove(id)
            order = self._order(node, windows) if node.listed_at >= 0 else None
            if order is None:
                continue
            if order <= told or not self._pool or order <= self._pool[0][0]:
                return node, order
            self._offer(node, windows)
        return None

    def _forget_pool(self) -> None:
        self._pool.clear()
        self._pooled.clear()

    # What a node's turn depends on.

    def _order(self, node: Node, windows: bool) -> _Order | None:
        """Its place among all that may go; None: nothing of it may."""
        age, deepest, largest = _oldest_first(node)
        if windows and node.stored.sliding_start < min(self._need(node), node.end):
            return _SLACK, age, deepest, largest
        if node.leases or (node.children and not (windows and node.marked)):
            return None
        if restorable(node, node.end, self._window):
            return _END, self._worth(node) if windows else age, deepest, largest
        return None if node.children else (_END, -1, deepest, largest)

    def _worth(self, node: Node) -> float:
        """Of a kept end: the chance that it is asked for x tokens it saves / bytes it holds."""
        before = longest_restorable(node.above, node.start, self._window)
        saved = node.end - before
        return self._rates.chance(node) * saved / max(1.0, self._charged_bytes(node))

    def _charged_bytes(self, node: Node) -> float:
        """A leaf's full K/V, and of its window its share among all that read it."""
        charged = 0.0 if node.children else float(node.stored.full_bytes)
        first, segment = node.end - self._window, node
        for _ in range(SEGMENTS_MAX):
            if segment.parent is None or segment.end <= first:
                break
            stored = segment.stored
            held = segment.end - max(stored.sliding_start, first)
            if held > 0:
                share = held / (segment.end - stored.sliding_start)
                charged += share * stored.sliding_bytes / max(1, self._readers(segment))
            segment = segment.parent
        return charged

    def _readers(self, node: Node) -> int:
        """How many kept ends read of the node's edge, roughly where there are many nodes."""
        count, below = 0, [iter((node,))]
        for _ in range(READERS_MAX):
            while below and (other := next(below[-1], None)) is None:
                below.pop()
            if not below or other is None:
                break
            count += len(other.landed) + self._is_kept(other)
            if other.end < node.end + self._window:
                below.append(iter(tuple(islice(other.children.values(), READERS_MAX))))
        return count

    def _is_kept(self, node: Node) -> bool:
        end_matters = node.marked or not node.children
        return end_matters and restorable(node, node.end, self._window)

    def _first_end(self, node: Node) -> int | None:
        """The first kept end within the node's edge; of a lease with a margin that much before."""
        landed = node.landed
        ends = [each.end - each.margin for each in landed if self._stands(node, each)]
        if self._is_kept(node):
            ends.append(node.end)
        return min(ends, default=None)

    def _stands(self, node: Node, lease: Lease) -> bool:
        return restorable(node, lease.end, self._window)

    def _need(self, node: Node) -> int:
        """Where the sliding K/V begins that kept ends at or below `node` read.

        Before the edge means all of it, at the edge's end or past it nothing. An end that lies
        further on reads less of this edge; one past a window reads nothing.
        """
        if node.windows:
            return node.start  # of what pins keep, the margin too
        least, window = node.end, self._window
        below = [node]
        margins = self._totals.margins
        reach = window + (PIN_MARGIN_TOKENS if margins else 0)
        while below and least > node.stored.sliding_start:
            other = below.pop()
            if (end := self._first_end(other)) is not None:
                least = min(least, end - window)
            if (end is None or margins) and other.end < node.end + reach:
                below.extend(other.children.values())
        return least

    # What is done.

    def _take(self, node: Node, order: _Order, windows: bool) -> None:
        if order[0] == _SLACK:
            self._thin(node, self._need(node))
        elif node.children:
            self._give_up(node)
            node.marked = False
            self._settle(node, node.end)
        else:
            parent = node.above
            self._give_up(node)
            self.drop(node, "evicted" if windows else "crowded")
            if windows:
                self._settle(parent, node.end)
            if parent.parent is not None:
                self._offer(parent, windows)
            return
        self._offer(node, windows)

    def _give_up(self, node: Node) -> None:
        """Nobody goes on there any more, but at the kept end before it."""
        before = node.above
        while before.parent is not None and not self._is_kept(before):
            before = before.parent
        before.given_up += 1 + node.given_up
        node.given_up = 0

    def _settle(self, node: Node, end: int) -> None:
        """A kept end is gone that lay at `end`: thin what only that end had read."""
        while node.parent and node.end > end - self._window:
            self._thin(node, self._need(node))
            node = node.parent

    def _thin(self, node: Node, start: int) -> None:
        start = min(max(start, node.start), node.end)
        if node.stored.sliding_start >= start:
            return
        was = weigh(node)
        node.payload = node.stored.thin(start)
        self._totals.move(was, weigh(node))
        self._totals.evictions["thinned"] += 1

    def _thin_leased(self, enough: Callable[[], bool]) -> None:
        if enough():
            return
        leases = (lease for node in self._totals.listed for lease in node.landed)
        due = {above for lease in leases if lease.due for above in trail(lease.node)}
        listed = self._totals.listed
        leased = [n for n in listed if n.leases and not n.windows and n not in due]
        for node in sorted(leased, key=_oldest_first):
            if enough():
                return
            self._thin(node, node.end)


def _oldest_first(node: Node) -> tuple[int, int, int]:
    """Least recently used, then the deepest, then the largest."""
    return node.age, -node.end, -node.stored.full_bytes - node.stored.sliding_bytes

"""What it costs the production tree to free 1 MiB, by how many nodes it has.

- Nodes are edges of four tokens, each with all its K/V, ten leaves on an inner one; nobody leases
  any. A leaf is somewhat less than 1 MiB, so two of them would do.
- After each pass, and out of its time, the tree is filled up to its size again.
- Time is that of the call: who calls waits for it, however much it frees beyond what was asked.
"""

from __future__ import annotations

import statistics
import time
from array import array

from bench.replay.payload import WeightlessPayload
from bench.replay.trace import TRACE_SHAPE
from sapwood.cache.prefix.tree import Tree

FREED_BYTES = 1 << 20
_EDGE_TOKENS, _LEAVES = 4, 10
_ROOT = b"freeing"


class FilledTree:
    """A tree of so many nodes, where the oldest leaves were stored first."""

    def __init__(self, nodes: int) -> None:
        self._nodes, self._stored, self._now = nodes, 0, 0
        self._tree = Tree(TRACE_SHAPE.window, nodes_max=2 * nodes)
        self.fill()

    @property
    def nodes(self) -> int:
        return self._tree.nodes

    def fill(self) -> None:
        """Add leaves until there are as many nodes as at the beginning."""
        while self.nodes < self._nodes:
            self._store()

    def free(self) -> float:
        """Seconds of freeing FREED_BYTES."""
        self._now += 1
        begun = time.perf_counter()
        freed = self._tree.evict(FREED_BYTES, self._now)
        seconds = time.perf_counter() - begun
        assert freed >= FREED_BYTES, f"{freed} bytes were freed"
        self.fill()
        return seconds

    def _store(self) -> None:
        """One leaf more, on an inner node that it shares with those beside it."""
        group = self._stored // _LEAVES
        tokens = array("i", [group] * _EDGE_TOKENS + [self._stored] * _EDGE_TOKENS)
        self._stored += 1
        self._now += 1
        found = self._tree.match(_ROOT, tokens).tokens
        lease = self._tree.lease(_ROOT, tokens, found, self._now)
        payload = WeightlessPayload(TRACE_SHAPE, found, len(tokens), found)
        self._tree.extend(lease, tokens, payload, self._now, turn_end=True)
        self._tree.release(lease, self._now)


def freeing_s(tree: FilledTree, passes: int) -> float:
    """The median pass of so many."""
    return statistics.median(tree.free() for _ in range(passes))

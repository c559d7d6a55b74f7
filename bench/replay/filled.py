"""What the production tree's own work costs, by how many nodes it has.

- Nodes are edges of four tokens, each with all its K/V, ten leaves on an inner one; nobody leases
  any. A leaf is somewhat less than 1 MiB, so two of them would do for what is freed. Beside them
  lies one path of 32,000 tokens, in edges as prefill stores them and a release joins them.
- Time is that of the call: who calls waits for it, however much it does beyond what was asked.
- After each pass, and out of its time, the tree has its size again, to a few nodes.
"""

from __future__ import annotations

import statistics
import time
from array import array
from collections.abc import Callable, Mapping

from bench.replay.payload import WeightlessPayload
from bench.replay.trace import TRACE_SHAPE
from sapwood.cache.prefix.node import Lease
from sapwood.cache.prefix.tree import Tree

FREED_BYTES = 1 << 20
LONG_TOKENS, SLICE_TOKENS = 32_000, 500
_EDGE_TOKENS, _LEAVES, _SMALL_EDGES = 4, 10, 8
_ROOT, _LONG_ROOT = b"filled", b"long"
_now = time.perf_counter


class FilledTree:
    """A tree of so many nodes, where the oldest leaves were stored first."""

    def __init__(self, nodes: int) -> None:
        self._nodes, self._stored, self._step, self._fresh = nodes, 0, 0, 0
        self._tree = Tree(TRACE_SHAPE.window, nodes_max=2 * nodes)
        self._long = array("i", range(LONG_TOKENS))
        self._release(self._follow(self._long, 0))
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
        self._step += 1
        begun = _now()
        freed = self._tree.evict(FREED_BYTES, self._step)
        seconds = _now() - begun
        assert freed >= FREED_BYTES, f"{freed} bytes were freed"
        self.fill()
        return seconds

    def match(self) -> float:
        """Seconds of matching a prompt of LONG_TOKENS that is stored."""
        begun = _now()
        found = self._tree.match(_LONG_ROOT, self._long)
        seconds = _now() - begun
        assert found.matched == LONG_TOKENS, f"{found}"
        return seconds

    def extend(self) -> float:
        """Seconds of storing a slice behind it."""
        tokens = self._long + self._fresh_tokens(SLICE_TOKENS)
        lease = self._lease(tokens, LONG_TOKENS)
        seconds = self._extend(lease, tokens, len(tokens))
        self._release(lease)
        self.fill()
        return seconds

    def split(self) -> float:
        """Seconds of storing what parts from it inside of an edge."""
        self._fresh += 1
        parted = LONG_TOKENS // 2 + self._fresh
        tokens = self._long[:parted] + self._fresh_tokens(SLICE_TOKENS)
        lease, splits = self._lease(tokens, 0), self._tree.splits
        seconds = self._extend(lease, tokens, len(tokens))
        assert self._tree.splits > splits, "nothing was split"
        self._release(lease)
        self.fill()
        return seconds

    def merge(self) -> float:
        """Seconds of a release that joins the small edges of its path."""
        tokens = self._long + self._fresh_tokens(_SMALL_EDGES * SLICE_TOKENS)
        lease, merges = self._follow(tokens, LONG_TOKENS), self._tree.merges
        seconds = self._release(lease)
        assert self._tree.merges >= merges + _SMALL_EDGES - 2, "nothing was joined"
        self.fill()
        return seconds

    def _fresh_tokens(self, tokens: int) -> array[int]:
        """That nobody has asked before."""
        self._fresh += 1
        return array("i", [LONG_TOKENS + self._fresh] * tokens)

    def _lease(self, tokens: array[int], end: int) -> Lease:
        self._step += 1
        return self._tree.lease(_LONG_ROOT, tokens, end, self._step)

    def _extend(self, lease: Lease, tokens: array[int], end: int) -> float:
        """Seconds of storing what lies behind the lease, up to `end`."""
        payload = WeightlessPayload(TRACE_SHAPE, lease.end, end, lease.end)
        self._step += 1
        begun = _now()
        self._tree.extend(lease, tokens, payload, self._step)
        return _now() - begun

    def _follow(self, tokens: array[int], start: int) -> Lease:
        """Store a path from `start` on, slice by slice."""
        lease = self._lease(tokens, start)
        for end in range(start + SLICE_TOKENS, len(tokens) + 1, SLICE_TOKENS):
            self._extend(lease, tokens, end)
        return lease

    def _release(self, lease: Lease) -> float:
        self._step += 1
        begun = _now()
        self._tree.release(lease, self._step)
        return _now() - begun

    def _store(self) -> None:
        """One leaf more, on an inner node that it shares with those beside it."""
        group = self._stored // _LEAVES
        tokens = array("i", [group] * _EDGE_TOKENS + [self._stored] * _EDGE_TOKENS)
        self._stored += 1
        self._step += 1
        found = self._tree.match(_ROOT, tokens).tokens
        lease = self._tree.lease(_ROOT, tokens, found, self._step)
        payload = WeightlessPayload(TRACE_SHAPE, found, len(tokens), found)
        self._tree.extend(lease, tokens, payload, self._step, turn_end=True)
        self._tree.release(lease, self._step)


TREE_WORK: Mapping[str, tuple[str, Callable[[FilledTree], float]]] = {
    "matching": (f"Matching {LONG_TOKENS:,} tokens", FilledTree.match),
    "extending": (f"Storing {SLICE_TOKENS} tokens behind them", FilledTree.extend),
    "splitting": ("Storing what parts from them", FilledTree.split),
    "merging": (f"Joining {_SMALL_EDGES} edges behind them", FilledTree.merge),
    "freeing": ("Freeing 1 MiB", FilledTree.free),  # last: it may free the long path
}


def work_s(tree: FilledTree, work: str, passes: int) -> float:
    """The median pass of so many."""
    return statistics.median(TREE_WORK[work][1](tree) for _ in range(passes))

"""What a tree holds and has done, by number: read by metrics, the ledger's owner and operators.

- Nothing here changes anything: radix, leases, eviction and clearing keep the Totals.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sapwood.cache.prefix.node import EvictionCause, Lease, Room, Totals
from sapwood.cache.prefix.radix import trail


class TreeCounts:
    """The counts of one tree, which writes to `_totals`."""

    def __init__(self) -> None:
        self._totals = Totals()

    @property
    def nodes(self) -> int:
        """How many there are, roots left out."""
        return self._totals.nodes

    @property
    def depth_tokens(self) -> int:
        """The end of the longest path."""
        return self._totals.deepest

    @property
    def full_bytes(self) -> int:
        """Bytes of full K/V in all nodes."""
        return self._totals.full_bytes

    @property
    def sliding_bytes(self) -> int:
        """Bytes of sliding K/V in all nodes."""
        return self._totals.sliding_bytes

    @property
    def bytes(self) -> int:
        """All stored K/V: what the ledger calls snapshots."""
        return self._totals.bytes

    @property
    def leased_bytes(self) -> int:
        """Full K/V of leased nodes, pins' too: evict cannot free it."""
        return self._totals.leased_bytes

    @property
    def kept_bytes(self) -> int:
        """Sliding K/V of pins: what evict cannot free beside leased_bytes."""
        return self._totals.kept_bytes

    @property
    def pinned(self) -> Room:
        """All that pins keep: the full K/V of their paths, and their sliding K/V."""
        totals = self._totals
        return Room(
            totals.pinned_bytes + totals.kept_bytes, totals.pinned_buffers + totals.kept_buffers
        )

    @property
    def buffers(self) -> int:
        """The device's buffers that all nodes together are."""
        return self._totals.buffers

    @property
    def splits(self) -> int:
        """Edges cut in two, ever."""
        return self._totals.splits

    @property
    def merges(self) -> int:
        """Pairs of edges joined to one, ever."""
        return self._totals.merges

    @property
    def reshaped(self) -> int:
        """Counts every time that full K/V came to lie in other payloads than before."""
        return self._totals.splits + self._totals.merges + self._totals.renewals

    @property
    def evictions(self) -> Mapping[EvictionCause, int]:
        """Nodes that were thinned, or dropped as evicted (bytes), crowded (nodes) or cleared."""
        return dict(self._totals.evictions)

    @property
    def taken_bytes(self) -> int:
        """K/V that was given to the tree, ever."""
        return self._totals.taken_bytes

    def read_bytes(self, ends: Iterable[tuple[Lease, int]]) -> int:
        """Full K/V of the edges that hold any of [0, end) of a leased path, each edge once."""
        held = {
            node.id: node.stored.full_bytes
            for lease, end in ends
            for node in trail(lease.node)
            if node.start < end
        }
        return sum(held.values())

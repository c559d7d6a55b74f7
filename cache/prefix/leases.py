"""Leases: what keeps a path in the tree while a sequence lives on it.

- A live lease covers [0, end) of one path and counts once on every node of it, root included.
- It lands in the node with start < end <= node.end (end 0: in the root); a split moves it along.
- So node.leases >= the leases of each child, and what nobody leases has no leased descendant.
"""

from __future__ import annotations

from sapwood.cache.prefix.node import Lease, Node, Totals


def grant(node: Node, end: int, totals: Totals) -> Lease:
    """A new lease of [0, end), which lands in `node`."""
    lease = Lease(node, end)
    node.landed.add(lease)
    _count(node, None, 1, totals)
    return lease


def advance(lease: Lease, node: Node, end: int, totals: Totals) -> None:
    """Extend the lease to [0, end), landing in `node` at or below its present one."""
    assert node.start < end <= node.end and end >= lease.end, f"{lease} cannot end at {end}"
    _count(node, lease.node, 1, totals)
    lease.node.landed.remove(lease)
    node.landed.add(lease)
    lease.node, lease.end = node, end


def revoke(lease: Lease, totals: Totals) -> None:
    """End the lease; it still tells where it was."""
    lease.live = False
    lease.node.landed.remove(lease)
    _count(lease.node, None, -1, totals)


def _count(node: Node | None, above: Node | None, by: int, totals: Totals) -> None:
    """Add `by` leases to `node` and its ancestors, up to but without `above`."""
    while node is not above:
        assert node is not None, "the lease's new landing is not below its old one"
        was = bool(node.leases)
        node.leases += by
        if node.payload is not None:
            change, full_bytes = bool(node.leases) - was, node.payload.full_bytes
            totals.leased_bytes += change * full_bytes
            totals.leased_buffers += change * bool(full_bytes)
        node = node.parent

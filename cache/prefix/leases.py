"""Leases: what keeps a path in the tree while a sequence lives on it.

- A live lease covers [0, end) of one path and counts once on every node of it, root included.
- It lands in the node with start < end <= node.end (end 0: in the root); a split moves it along.
- So node.leases >= the leases of each child, and what nobody leases has no leased descendant.
- A pin is a lease that is held for nobody. It counts as one, and as a pin, on every node of its
  path; it ends where its node ends, and what it keeps of sliding K/V begins where a node begins.
- Who takes or extends a lease after a clearing has the edges that it covers as his own: they are
  doomed no more.
"""

from __future__ import annotations

from sapwood.cache.prefix.node import Lease, Node, Totals, weigh

# Of a pinned prefix so many tokens before its window have sliding K/V too: where a prompt goes on
# may lie before the prefix's end, as its text is cut into other tokens, or a turn follows another.
PIN_MARGIN_TOKENS = 32


def kept_tokens(tokens: int, window: int) -> int:
    """Of how many of a prefix's `tokens` tokens a pin keeps the sliding K/V."""
    return min(tokens, window + PIN_MARGIN_TOKENS) if window else 0


def grant(node: Node, end: int, totals: Totals, margin: int = 0) -> Lease:
    """A new lease of [0, end), which lands in `node`."""
    lease = Lease(node, end, margin=margin)
    totals.margins += bool(margin)
    node.landed.add(lease)
    _count(node, None, 1, totals)
    _revive(lease, totals)
    return lease


def keep_for_good(lease: Lease, first: int, totals: Totals) -> None:
    """Make a pin of a live lease: the sliding K/V of [first, end) stays too.

    A node of its path begins at `first`, and one ends where it ends.
    """
    assert lease.end == lease.node.end, f"{lease} ends within an edge"
    lease.pinned, lease.kept_start = True, first
    _count_pin(lease, 1, totals)


def pin_bytes(lease: Lease) -> int:
    """What a pin keeps, other pins' and sequences' share in it too."""
    total, node = 0, lease.node
    while node.parent is not None:
        windows = node.stored.sliding_bytes if node.end > lease.kept_start else 0
        total += node.stored.full_bytes + windows
        node = node.parent
    return total


def advance(lease: Lease, node: Node, end: int, totals: Totals) -> None:
    """Extend the lease to [0, end), landing in `node` at or below its present one."""
    assert node.start < end <= node.end and end >= lease.end, f"{lease} cannot end at {end}"
    _count(node, lease.node, 1, totals)
    lease.node.landed.remove(lease)
    node.landed.add(lease)
    lease.node, lease.end = node, end
    if not lease.doomed:
        _revive(lease, totals)


def revoke(lease: Lease, totals: Totals) -> None:
    """End the lease; it still tells where it was."""
    if lease.pinned:
        _count_pin(lease, -1, totals)
    lease.live = False
    totals.margins -= bool(lease.margin)
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


def _count_pin(lease: Lease, by: int, totals: Totals) -> None:
    node = lease.node
    while node.parent is not None:
        was = weigh(node)
        node.pins += by
        node.windows += by * (node.end > lease.kept_start)
        totals.move(was, weigh(node))
        node = node.parent


def _revive(lease: Lease, totals: Totals) -> None:
    """What the lease covers whole is its own. What lies above what is not doomed is not either."""
    node: Node | None = lease.node if lease.end == lease.node.end else lease.node.parent
    while node is not None and totals.doomed:
        totals.doomed -= node.doomed
        node.doomed = False
        node = node.parent

"""What operators take out of the tree.

- What nobody holds goes at once. What a sequence holds is *doomed*: it goes with the last lease
  that held it then, and so does what these leases store until they end.
- Who comes later and goes on from the end of a doomed edge has it as his own: it stays (leases.py).
- What pins keep is never doomed. What lies below a doomed node is doomed too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from sapwood.cache.prefix.eviction import Eviction
from sapwood.cache.prefix.node import Lease, Node, Totals
from sapwood.cache.prefix.radix import preorder, trail


class Swept(NamedTuple):
    """What a clearing freed, and the bytes of what goes later."""

    nodes: int = 0
    freed_bytes: int = 0
    held_bytes: int = 0


def sweep(tops: Iterable[Node], running: Iterable[Lease], totals: Totals, out: Eviction) -> Swept:
    """Drop or doom these nodes and all below them, but for roots and what pins keep.

    And above them, and above where these leases end, what leads nowhere else: where no turn ended
    and no other path goes on.
    """
    tops = list(tops)
    ends = [top.above for top in tops if top.parent is not None]
    taken = []
    for node in reversed(list(preorder(tops))):  # children first
        for lease in node.landed:
            lease.doomed = not lease.pinned
        taken.append(_take(node, totals, out))
    for lease in running:
        lease.doomed = True
        ends.append(lease.node)
    for end in ends:
        while end.parent is not None and _leads_nowhere(end):
            node, end = end, end.above
            taken.append(_take(node, totals, out))
    return Swept(*map(sum, zip(*taken, strict=True))) if taken else Swept()


def bury(lease: Lease, totals: Totals, out: Eviction) -> Node:
    """The lease has ended: what was doomed under it goes, where nobody holds it any more.

    Returns the deepest node of its path that stays.
    """
    if not totals.doomed:
        return lease.node
    path = trail(lease.node)
    stays = path[0].above if path else lease.node
    for node in path:
        _drop_dead(stays, out)
        if node.listed_at < 0:
            return stays
        stays = node
    _drop_dead(stays, out)
    return stays


def _take(node: Node, totals: Totals, out: Eviction) -> Swept:
    if node.parent is None or node.pins:
        return Swept()
    stored = node.stored.full_bytes + node.stored.sliding_bytes
    if not node.leases:
        out.drop(node, "cleared")
        return Swept(1, stored)
    totals.doomed += not node.doomed
    node.doomed = True
    return Swept(held_bytes=stored)


def _leads_nowhere(node: Node) -> bool:
    if node.listed_at < 0 or node.marked or node.pins or node.doomed:
        return False
    return all(child.doomed for child in node.children.values())


def _drop_dead(parent: Node, out: Eviction) -> None:
    """Of its children: a cut may have left one whose only lease ends above it."""
    for child in [each for each in parent.children.values() if each.doomed and not each.leases]:
        for node in reversed(list(preorder([child]))):
            out.drop(node, "cleared")

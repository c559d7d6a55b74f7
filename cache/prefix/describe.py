"""The tree seen from outside: a frozen view of a node, and the check of everything at once.

- A view holds no arrays and, unless asked, no tokens.
- audit() names the invariant ids of T1, T5, T7 and T9; every message prints ranges.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from sapwood.cache.prefix.node import Node, Totals, Weight, weigh
from sapwood.cache.prefix.radix import preorder


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node as operators see it. A root is [0, 0) and has no parent."""

    id: int
    parent: int | None
    start: int
    end: int
    full_bytes: int
    sliding_bytes: int
    sliding_start: int
    leases: int  # of sequences
    pinned: bool
    age: int  # step of the last use
    hits: int
    marked: bool  # its end is worth a window: a turn ended or paths parted there
    tokens: tuple[int, ...] | None


def view(node: Node, tokens: bool) -> NodeView:
    """The node as it is now; later changes do not touch the view. `tokens`: copies its edge too."""
    weight = weigh(node) if node.parent else Weight()
    return NodeView(
        id=node.id,
        parent=node.parent.id if node.parent else None,
        start=node.start,
        end=node.end,
        full_bytes=weight.full,
        sliding_bytes=weight.sliding,
        sliding_start=node.stored.sliding_start if node.parent else 0,
        leases=node.leases - node.pins,
        pinned=node.pins > 0,
        age=node.age,
        hits=node.hits,
        marked=node.marked,
        tokens=tuple(node.edge) if tokens else None,
    )


class EdgeView(NamedTuple):
    """A node's place and tokens, cheap enough to be taken of all at once. None of it changes."""

    id: int
    parent: int | None  # None below a root
    start: int
    end: int
    sliding_start: int
    tokens: array[int]


def edges_of(top: Node | None) -> Iterator[EdgeView]:
    """All below a root, if there is one, parents first. The tree may not change meanwhile."""
    for node in preorder(top.children.values() if top else ()):
        parent = None if node.above is top else node.above.id
        yield EdgeView(node.id, parent, node.start, node.end, node.stored.sliding_start, node.edge)


def audit(roots: Mapping[bytes, Node], totals: Totals) -> None:
    """Assert T1, T5, T7, T9 for every node, and that the totals are their sum. O(nodes)."""
    order = list(preorder(roots.values()))
    nodes = [node for node in order if node.parent]
    for key, top in roots.items():
        assert top.root == key and top.end == 0 and top.payload is None, f"{top} is no root"
    for node in nodes:
        _check_edge(node)
    _check_leases(order)
    payloads = {id(node.stored) for node in nodes}
    assert len(payloads) == len(nodes), "T7: two nodes own one payload"
    counted = Weight(
        totals.full_bytes,
        totals.sliding_bytes,
        totals.leased_bytes,
        totals.buffers,
        totals.leased_buffers,
        totals.pinned_bytes,
        totals.pinned_buffers,
        totals.kept_bytes,
        totals.kept_buffers,
    )
    assert counted == weigh(*nodes), f"counted {counted}, stored {weigh(*nodes)}"
    assert totals.nodes == len(nodes), f"counted {totals.nodes} nodes of {len(nodes)}"
    assert all(totals.listed[node.listed_at] is node for node in nodes), "a node is not listed"
    depth = max((node.end for node in nodes), default=0)
    doomed = sum(node.doomed for node in nodes)
    assert totals.doomed == doomed, f"counted {totals.doomed} doomed nodes of {doomed}"
    assert totals.deepest == depth, f"depth {totals.deepest} of {depth}"


def _check_edge(node: Node) -> None:
    parent, payload = node.above, node.stored
    assert node.start == parent.end, f"T1: {node} under {parent}"
    assert 0 < len(node.edge) == node.end - node.start, f"T1: {node} of {len(node.edge)} tokens"
    assert parent.children.get(node.edge[0]) is node, f"T1: {parent} does not lead to {node}"
    held = f"[{payload.start}, {payload.end}) with sliding from {payload.sliding_start}"
    whole = not node.windows or payload.sliding_start == payload.start
    assert whole, f"T6: {held} in {node}, which is pinned"
    assert (payload.start, payload.end) == (node.start, node.end), f"T9: {held} in {node}"
    assert payload.start <= payload.sliding_start <= payload.end, f"T9: {held} in {node}"


def _check_leases(order: list[Node]) -> None:
    """T5: a node counts the leases that land in it or below it, and the pins among them."""
    below = dict.fromkeys(order, 0)
    pins = dict.fromkeys(order, 0)
    for node in reversed(order):
        for lease in node.landed:
            inside = node.start < lease.end <= node.end or (node.parent is None and lease.end == 0)
            assert lease.live and lease.node is node and inside, f"T5: {lease} landed in {node}"
        below[node] += len(node.landed)
        pins[node] += sum(lease.pinned for lease in node.landed)
        assert node.leases == below[node], f"T5: {node} counts {node.leases} of {below[node]}"
        pinned = pins[node] if node.parent else 0
        assert node.pins == pinned, f"T5: {node} counts {node.pins} pins of {pinned}"
        assert not (node.pins and node.doomed), f"T5: {node} is pinned, and cleared"
        if node.parent:
            below[node.parent] += below[node]
            pins[node.parent] += pins[node]

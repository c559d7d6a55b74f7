"""What of a tree can be seen at a glance, found by looking at so many of its nodes and no more.

- Of a tree that has no more nodes than may be looked at, all is exact. Of a larger one those are
  looked at first that are in use, then those that most prompts went through, and of the children
  of a node the newest; `below_bytes` is then what was seen, and `hidden` says what was not drawn.
- What is drawn is closed upwards: each node stands behind its parent.
- A sketch holds no nodes, no arrays and no tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush, nsmallest
from itertools import islice
from typing import NamedTuple

from sapwood.cache.prefix.node import Node


class SketchNode(NamedTuple):
    """One node. A root is [0, 0), has no parent and no bytes of its own.

    below_bytes: of all that was looked at below it and of itself. hidden: children that are not
    drawn, looked at or not. leases, pinned, age, hits: as in NodeView.
    """

    id: int
    parent: int | None
    start: int
    end: int
    full_bytes: int
    sliding_bytes: int
    below_bytes: int
    leases: int
    pinned: bool
    age: int
    hits: int
    hidden: int


@dataclass(frozen=True, slots=True)
class Sketch:
    """nodes: parents first, depth first, siblings in the order in which they came about.

    nodes_seen: how many were looked at, of `nodes_total`; roots count in neither.
    """

    nodes: tuple[SketchNode, ...] = ()
    nodes_seen: int = 0
    nodes_total: int = 0


def sketch(roots: Iterable[Node], total: int, looks_max: int, nodes_max: int) -> Sketch:
    """Draw at most `nodes_max` nodes of those under `roots`, `total` of them without the roots.

    Looks at `looks_max` at most, roots included: O(looks_max log looks_max), however large it is.
    """
    tops = list(islice(roots, looks_max))
    kids = _look(tops, looks_max)
    order = _depth_first(tops, kids)
    below = {node.id: _own_bytes(node) for node in order}
    for node in reversed(order):
        if node.parent is not None:
            below[node.parent.id] += below[node.id]
    # Both keys grow upwards, and among equals the parent comes first: so no child without it.
    ranked = nsmallest(
        nodes_max, enumerate(order), key=lambda e: (not e[1].leases, -below[e[1].id], e[0])
    )
    drawn = [node for _, node in sorted(ranked, key=lambda each: each[0])]
    shown = {node.id: 0 for node in drawn}
    for node in drawn:
        if node.parent is not None:
            shown[node.parent.id] += 1
    nodes = tuple(_drawn(node, below, len(node.children) - shown[node.id]) for node in drawn)
    return Sketch(nodes, len(order) - len(tops), total)


def _look(tops: list[Node], looks_max: int) -> Mapping[int, list[Node]]:
    """By a node's id, those of its children that were looked at, the oldest first."""
    kids: dict[int, list[Node]] = {}
    heap: list[tuple[int, int, int, Node]] = []
    left = looks_max - len(tops)
    for node in tops:
        heappush(heap, (-node.leases, -node.hits, node.id, node))
    while heap and left:
        node = heappop(heap)[-1]
        seen = list(islice(reversed(node.children.values()), left))
        left -= len(seen)
        kids[node.id] = seen[::-1]
        for child in seen:
            if child.children:
                heappush(heap, (-child.leases, -child.hits, child.id, child))
    return kids


def _depth_first(tops: list[Node], kids: Mapping[int, list[Node]]) -> list[Node]:
    order: list[Node] = []
    stack = tops[::-1]
    while stack:
        node = stack.pop()
        order.append(node)
        stack += reversed(kids.get(node.id, ()))
    return order


def _own_bytes(node: Node) -> int:
    stored = node.payload
    return 0 if stored is None else stored.full_bytes + stored.sliding_bytes


def _drawn(node: Node, below: Mapping[int, int], hidden: int) -> SketchNode:
    stored = node.payload
    return SketchNode(
        id=node.id,
        parent=None if node.parent is None else node.parent.id,
        start=node.start,
        end=node.end,
        full_bytes=0 if stored is None else stored.full_bytes,
        sliding_bytes=0 if stored is None else stored.sliding_bytes,
        below_bytes=below[node.id],
        leases=node.leases - node.pins,
        pinned=node.pins > 0,
        age=node.age,
        hits=node.hits,
        hidden=hidden,
    )

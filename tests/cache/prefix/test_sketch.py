"""What can be seen of a tree at a glance, and what looking costs."""

from __future__ import annotations

from array import array
from collections import Counter
from random import Random
from typing import Any, cast

import pytest

from sapwood.cache.prefix.node import Node
from sapwood.cache.prefix.sketch import Sketch, sketch
from tests.cache.prefix.garden import Garden

ALL = 10**6


def planted(seed: int = 1, leaves: int = 40) -> Garden:
    """A tree of a few words, each of which goes on in many ways, under two roots."""
    garden, random = Garden(), Random(seed)
    for _ in range(leaves):
        text = random.choice(("abcdefgh", "abcdxyz", "mnop")) + "".join(random.choices("stuv", k=4))
        root = random.choice((b"root", b"other"))
        lease = garden.lease(text, root=root)
        garden.extend(lease, text, sliding=2)
        garden.tree.release(lease, garden.step())
    return garden


def by_parent(garden: Garden) -> Counter[int | None]:
    return Counter(node.parent for node in garden.tree.describe())


def test_a_small_tree_is_drawn_whole_and_sums_to_its_bytes() -> None:
    garden = planted()
    told = garden.tree.sketch(ALL, ALL)
    views = {node.id: node for node in garden.tree.describe()}
    assert told.nodes_seen == told.nodes_total == garden.tree.nodes > 20
    assert {node.id for node in told.nodes} == views.keys()
    for node in told.nodes:
        view = views[node.id]
        shared = ("parent", "start", "end", "full_bytes", "sliding_bytes", "leases", "age", "hits")
        assert all(getattr(node, name) == getattr(view, name) for name in shared)
        below = sum(n.below_bytes for n in told.nodes if n.parent == node.id)
        assert node.below_bytes == node.full_bytes + node.sliding_bytes + below
        assert node.hidden == 0
    tops = [node.below_bytes for node in told.nodes if node.parent is None]
    assert len(tops) == 2 and sum(tops) == garden.tree.full_bytes + garden.tree.sliding_bytes


@pytest.mark.parametrize("nodes_max", [1, 3, 7, 20])
def test_of_what_does_not_fit_the_heaviest_are_drawn_each_behind_its_parent(nodes_max: int) -> None:
    garden = planted()
    whole, told = garden.tree.sketch(ALL, ALL), garden.tree.sketch(ALL, nodes_max)
    assert len(told.nodes) == nodes_max
    assert [n.id for n in told.nodes] == [
        n.id for n in whole.nodes if n.id in {m.id for m in told.nodes}
    ]
    drawn: set[int] = set()
    for node in told.nodes:
        assert node.parent is None or node.parent in drawn
        drawn.add(node.id)
    children, shown = by_parent(garden), Counter(node.parent for node in told.nodes)
    assert all(node.hidden == children[node.id] - shown[node.id] for node in told.nodes)
    left = [node.below_bytes for node in whole.nodes if node.id not in drawn]
    assert max(left) <= min(node.below_bytes for node in told.nodes)


def test_what_is_in_use_is_drawn_however_small_it_is() -> None:
    garden = planted()
    lease = garden.lease("mnopq")
    garden.extend(lease, "mnopq")
    used = [node.id for node in garden.tree.describe() if node.leases]
    told = garden.tree.sketch(ALL, len(used))
    assert {node.id for node in told.nodes} == set(used)
    assert all(node.leases == 1 and not node.pinned for node in told.nodes)


def test_pins_are_told_and_are_no_leases() -> None:
    garden = Garden()
    lease = garden.lease("abcdefgh")
    garden.extend(lease, "abcdefgh")
    garden.tree.release(lease, garden.step())
    assert garden.tree.pin(b"root", tuple(b"abcdefgh"), garden.step()) is not None
    pinned = [node for node in garden.tree.sketch(ALL, ALL).nodes if node.pinned]
    assert pinned and not any(node.leases for node in pinned)


def test_siblings_keep_their_order_when_one_is_cut() -> None:
    garden = Garden()
    for text in ("bcdefg", "cdefgh", "defghi"):
        lease = garden.lease(text)
        garden.extend(lease, text)
        garden.tree.release(lease, garden.step())
    before = [node.end for node in garden.tree.sketch(ALL, ALL).nodes]
    lease = garden.lease("bcdxyz")
    garden.extend(lease, "bcdxyz")
    assert before == [0, 6, 6, 6]
    assert [node.end for node in garden.tree.sketch(ALL, ALL).nodes] == [0, 3, 6, 6, 6, 6]


class _CountedPayload:
    """As much as a sketch reads of one; reads: of all."""

    reads = 0

    def __init__(self, size: int) -> None:
        self._size = size

    @property
    def full_bytes(self) -> int:
        type(self).reads += 1
        return self._size

    sliding_bytes = 0


def crowd(width: int) -> Node:
    """A root, one node below it, `width` nodes below that, and one below each of these."""
    random = Random(2)

    def grown(id: int, parent: Node | None, start: int, end: int) -> Node:
        payload = cast("Any", _CountedPayload(random.randrange(1, 99))) if parent else None
        node = Node(id, parent, array("i", range(end - start)), start, end, payload, age=id)
        if parent is not None:
            parent.children[len(parent.children)] = node
        return node

    top = grown(0, None, 0, 0)
    hub = grown(1, top, 0, 4)
    for id in range(2, 2 + width):
        grown(width + id, grown(id, hub, 4, 6), 6, 9)
    return top


@pytest.mark.parametrize("looks_max", [5, 50, 500])
def test_no_more_nodes_are_looked_at_than_may_be(looks_max: int) -> None:
    top = crowd(3_000)
    _CountedPayload.reads = 0
    told = sketch([top], 6_001, looks_max, 100)
    assert told.nodes_total == 6_001 and told.nodes_seen == looks_max - 1
    assert len(told.nodes) == min(100, looks_max)
    assert _CountedPayload.reads <= 2 * looks_max
    hub = told.nodes[1]
    assert hub.hidden == 3_000 - sum(node.parent == hub.id for node in told.nodes)
    newest = max(node.id for node in told.nodes if node.parent == hub.id)
    assert newest > 3_001 - looks_max, "of many children the newest are looked at"


def test_nothing_is_drawn_of_nothing() -> None:
    assert sketch([], 0, 10, 10) == Sketch()
    assert Garden().tree.sketch(10, 10) == Sketch()

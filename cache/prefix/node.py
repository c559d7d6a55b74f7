"""What the prefix tree is made of: nodes, the leases that land in them, and the count of it all.

- A node is the edge [start, end) of the paths that run through it; only a root has no parent, no
  payload and an empty edge.
- Values without moves: radix changes the shape, leases counts who holds a path, both keep Totals.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Literal, NamedTuple, get_args

from sapwood.cache.prefix.snapshot import Payload

EvictionCause = Literal["thinned", "evicted", "crowded", "cleared"]
EndKind = Literal["parted", "prompt", "reply"]  # where paths part, a prompt or a reply ends
ENDS_SPARE = 64  # of Totals.ends, beside as many as there are nodes
EVICTION_CAUSES: tuple[EvictionCause, ...] = get_args(EvictionCause)


@dataclass(slots=True, eq=False)
class Node:
    """The edge [start, end) of the paths that run through it."""

    id: int
    parent: Node | None  # None at a root
    edge: array[int]
    start: int
    end: int  # start + len(edge); never changes, while split and merge move the start
    payload: Payload | None  # None at a root
    age: int  # step of the last use as a landing or frontier
    root: bytes = b""  # the root key, at a root
    marked: bool = False  # a turn ended or paths parted at `end`: worth a window of sliding K/V
    hits: int = 0
    leases: int = 0  # live leases whose path contains this node
    pins: int = 0  # those of them that are pins
    windows: int = 0  # pins that keep the sliding K/V of this node, all of it
    doomed: bool = False  # cleared: it goes with its last lease
    landed: set[Lease] = field(default_factory=set)  # those whose end lies in (start, end]
    children: dict[int, Node] = field(default_factory=dict)
    listed_at: int = -1  # its place in Totals.listed
    # Of its end: how it came about, how often a prompt went on there, how many ends behind it were
    # given up, and in uses when it was used last and up to when its idling is accounted for
    # (worth.py).
    end_kind: EndKind = "parted"
    end_hits: int = 0
    given_up: int = 0
    used: int = 0
    exposed: int = 0

    @property
    def stored(self) -> Payload:
        """The payload of any node but a root. The node keeps owning it."""
        assert self.payload is not None, f"{self} stores nothing"
        return self.payload

    @property
    def above(self) -> Node:
        """The parent of any node but a root."""
        assert self.parent is not None, f"{self} has no parent"
        return self.parent

    def __repr__(self) -> str:
        return f"node {self.id} [{self.start}, {self.end})"


class Room(NamedTuple):
    """What is wanted of a device, or free on it: bytes, and buffers to hold them."""

    bytes: int
    buffers: int = 0

    @classmethod
    def sum(cls, *rooms: Room) -> Room:
        """All of them together."""
        return cls(sum(room.bytes for room in rooms), sum(room.buffers for room in rooms))


class Weight(NamedTuple):
    """Bytes and buffers of some nodes.

    What is leased is the full K/V that a lease protects, what is pinned that of pins' paths, what
    is kept the sliding K/V of pins.
    """

    full: int = 0
    sliding: int = 0
    leased: int = 0
    buffers: int = 0
    leased_buffers: int = 0
    pinned: int = 0
    pinned_buffers: int = 0
    kept: int = 0
    kept_buffers: int = 0


def weigh(*nodes: Node) -> Weight:
    """Bytes and buffers of nodes that are no roots, all together."""
    full = [node.stored.full_bytes for node in nodes]
    sliding = [node.stored.sliding_bytes for node in nodes]
    leased = [node.stored.full_bytes for node in nodes if node.leases]
    pinned = [node.stored.full_bytes for node in nodes if node.pins]
    kept = [node.stored.sliding_bytes for node in nodes if node.windows]
    return Weight(
        sum(full),
        sum(sliding),
        sum(leased),
        sum(map(bool, full)) + sum(map(bool, sliding)),
        sum(map(bool, leased)),
        sum(pinned),
        sum(map(bool, pinned)),
        sum(kept),
        sum(map(bool, kept)),
    )


@dataclass(slots=True)
class Totals:
    """What the tree holds and has done. Written by radix, leases, eviction and the tree itself.

    listed: all nodes but roots, in no order, so that one can be looked at without a walk.
    """

    listed: list[Node] = field(default_factory=list)
    # A heap of (-end, id, node), of nodes that are gone as well until they come to the top.
    ends: list[tuple[int, int, Node]] = field(default_factory=list)
    full_bytes: int = 0
    sliding_bytes: int = 0
    leased_bytes: int = 0
    buffers: int = 0
    leased_buffers: int = 0
    pinned_bytes: int = 0
    pinned_buffers: int = 0
    kept_bytes: int = 0
    kept_buffers: int = 0
    splits: int = 0
    merges: int = 0
    taken_bytes: int = 0  # of all that was ever stored, repetitions too
    doomed: int = 0  # nodes that are
    margins: int = 0  # leases that have one
    renewals: int = 0  # payloads that another took the place of
    evictions: dict[EvictionCause, int] = field(
        default_factory=lambda: dict.fromkeys(EVICTION_CAUSES, 0)
    )
    next_id: int = 0

    @property
    def nodes(self) -> int:
        """How many there are, without roots."""
        return len(self.listed)

    def add(self, node: Node) -> None:
        """A new node."""
        node.listed_at = len(self.listed)
        self.doomed += node.doomed
        self.listed.append(node)
        heappush(self.ends, (-node.end, node.id, node))
        if len(self.ends) > 2 * len(self.listed) + ENDS_SPARE:
            self.ends = [(-each.end, each.id, each) for each in self.listed]
            heapify(self.ends)

    def remove(self, node: Node) -> None:
        """The node is gone; the last one of the list takes its place."""
        last = self.listed.pop()
        if last is not node:
            self.listed[node.listed_at] = last
            last.listed_at = node.listed_at
        self.doomed -= node.doomed
        node.listed_at = -1

    @property
    def deepest(self) -> int:
        """The end of the longest path."""
        while self.ends and self.ends[0][2].listed_at < 0:
            heappop(self.ends)
        return -self.ends[0][0] if self.ends else 0

    @property
    def bytes(self) -> int:
        """Full and sliding K/V of all nodes together."""
        return self.full_bytes + self.sliding_bytes

    def draw_id(self) -> int:
        """A number that no node of this tree had before, roots included."""
        self.next_id += 1
        return self.next_id - 1

    def move(self, was: Weight, now: Weight) -> int:
        """Account for a change; returns by how many bytes the tree grew."""
        self.full_bytes += now.full - was.full
        self.sliding_bytes += now.sliding - was.sliding
        self.leased_bytes += now.leased - was.leased
        self.buffers += now.buffers - was.buffers
        self.leased_buffers += now.leased_buffers - was.leased_buffers
        self.pinned_bytes += now.pinned - was.pinned
        self.pinned_buffers += now.pinned_buffers - was.pinned_buffers
        self.kept_bytes += now.kept - was.kept
        self.kept_buffers += now.kept_buffers - was.kept_buffers
        return now.full + now.sliding - was.full - was.sliding


@dataclass(slots=True, eq=False)
class Lease:
    """One sequence's hold on [0, end) of a path. Only the tree writes to it."""

    node: Node
    end: int
    live: bool = True
    due: bool = False  # to be restored from: nothing of its path is thinned until it was
    used: bool = False  # whether anything was restored from it or stored along it
    turn_ends: int = 0  # that were stored along it: the prompt's, the reply's
    hit_end: int = 0  # where the lease ended when a prompt was served from it
    margin: int = 0  # of one that becomes a pin: who goes on so far before its end is provided for
    pinned: bool = False  # held for nobody, until it is unpinned
    kept_start: int = 0  # of a pin: it keeps the sliding K/V from here on
    doomed: bool = False  # what it held was cleared: that and what it stores goes with it

    def __repr__(self) -> str:
        return f"{'live' if self.live else 'released'} lease of [0, {self.end}) in {self.node}"

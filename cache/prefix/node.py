"""What the prefix tree is made of: nodes, the leases that land in them, and the count of it all.

- A node is the edge [start, end) of the paths that run through it; only a root has no parent, no
  payload and an empty edge.
- Values without moves: radix changes the shape, leases counts who holds a path, both keep Totals.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

from sapwood.cache.prefix.snapshot import Payload

EvictionCause = Literal["thinned", "evicted", "crowded", "cleared"]
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
    landed: set[Lease] = field(default_factory=set)  # those whose end lies in (start, end]
    children: dict[int, Node] = field(default_factory=dict)

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


class Weight(NamedTuple):
    """Bytes and buffers of some nodes; what is leased is the full K/V that a lease protects."""

    full: int = 0
    sliding: int = 0
    leased: int = 0
    buffers: int = 0
    leased_buffers: int = 0


def weigh(*nodes: Node) -> Weight:
    """Bytes and buffers of nodes that are no roots, all together."""
    full = [node.stored.full_bytes for node in nodes]
    sliding = [node.stored.sliding_bytes for node in nodes]
    leased = [node.stored.full_bytes for node in nodes if node.leases]
    buffers = sum(map(bool, full)) + sum(map(bool, sliding))
    return Weight(sum(full), sum(sliding), sum(leased), buffers, sum(map(bool, leased)))


@dataclass(slots=True)
class Totals:
    """What the tree holds and has done. Written by radix, leases, eviction and the tree itself."""

    nodes: int = 0  # without roots
    full_bytes: int = 0
    sliding_bytes: int = 0
    leased_bytes: int = 0
    buffers: int = 0
    leased_buffers: int = 0
    splits: int = 0
    merges: int = 0
    renewals: int = 0  # payloads that another took the place of
    deepest: int | None = 0  # None: the deepest leaf is gone, its successor not looked for yet
    evictions: dict[EvictionCause, int] = field(
        default_factory=lambda: dict.fromkeys(EVICTION_CAUSES, 0)
    )
    next_id: int = 0

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
        return now.full + now.sliding - was.full - was.sliding


@dataclass(slots=True, eq=False)
class Lease:
    """One sequence's hold on [0, end) of a path. Only the tree writes to it."""

    node: Node
    end: int
    live: bool = True
    due: bool = False  # to be restored from: nothing of its path is thinned until it was
    hit_end: int = 0  # where the lease ended when a prompt was served from it

    def __repr__(self) -> str:
        return f"{'live' if self.live else 'released'} lease of [0, {self.end}) in {self.node}"

"""What the tree takes of the device's memory, and what is promised to captures: room for both.

- held("snapshots") == bytes of the tree + promised + coming, at every boundary, and for each buffer
  of them what MLX may hand out beyond what is asked. The tree does not know of that.
- A capture is *promised* its worst case when it is planned. At commit all promises are given back
  first and the ledger follows what the tree really took.
- Buffers are counted beside bytes, in a ledger of their own: where the device bounds them, what
  does not find one waits or evicts as it would for bytes.
- What is read from disk has room held for it meanwhile. That gives way to whoever else finds none.
- Cutting an edge takes a page and a buffer more of each kind of layer. So room for all cuts is made
  before a capture is inserted, and what finds none is not stored.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence

from sapwood.cache.prefix.clearing import Swept
from sapwood.cache.prefix.ledger import Ledger
from sapwood.cache.prefix.node import Lease, Room
from sapwood.cache.prefix.snapshot import Payload
from sapwood.cache.prefix.tree import Tree
from sapwood.scheduler.events import Clear
from sapwood.scheduler.model_facts import ModelFacts

KINDS_STORED = 2  # full layers and sliding ones: as many buffers has an edge at most


class SnapshotRoom:
    """The tree's part of both ledgers, which it follows through every change of the tree."""

    def __init__(self, facts: ModelFacts, tree: Tree, bytes_: Ledger, buffers: Ledger) -> None:
        self._facts, self.tree = facts, tree
        self._bytes, self._buffers = bytes_, buffers
        self._promised = Room(0)
        self._coming = Room(0)  # from disk
        self.give_way: Callable[[int], None] = lambda step: None  # stops all that comes
        self.version = 0  # of what the tree can match
        self.pins_max = Room(0)  # what pins may keep, as it is charged; whoever makes them sets it

    @property
    def leased_bytes(self) -> int:
        """What no eviction gives back: what somebody holds or a pin keeps, and what is promised."""
        return self.tree.leased_bytes + self.tree.kept_bytes + self._promised.bytes

    @property
    def promising(self) -> bool:
        """Whether a capture is under way."""
        return any(self._promised)

    def state(self) -> tuple[int, ...]:
        """What is free and what could be, by which to see that nothing changed."""
        evictable = self.tree.evictable()
        free = self._bytes.free, self._buffers.free
        return *free, self._charged(evictable), evictable.buffers

    @property
    def within_reach(self) -> int:
        """Bytes that are free or could be."""
        coming = self._coming.bytes
        return self._bytes.free + coming + self._charged(self.tree.evictable())

    def make(self, wanted: Room, step: int, kept: int = 0) -> bool:
        """Evict so that `wanted` is free; False, with nothing evicted, if it cannot be.

        kept: bytes of what is free that are not to be had. What comes from disk gives way first.
        """
        if self._make(wanted, step, kept):
            return True
        if not any(self._coming):
            return False
        self.give_way(step)
        return self._make(wanted, step, kept)

    def hold(self, wanted: Room, step: int) -> bool:
        """Keep room for what comes from disk, until let_go(). False where there is none."""
        if not self._make(wanted, step):
            return False
        self._bytes.reserve("snapshots", wanted.bytes)
        self._buffers.reserve("snapshots", wanted.buffers)
        self._coming = Room.sum(self._coming, wanted)
        return True

    def let_go(self, held: Room) -> None:
        """It is there, and stored next, or never comes."""
        self._bytes.give_back("snapshots", held.bytes)
        self._buffers.give_back("snapshots", held.buffers)
        self._coming = Room(self._coming.bytes - held.bytes, self._coming.buffers - held.buffers)

    def _make(self, wanted: Room, step: int, kept: int = 0) -> bool:
        tree, ledger, buffers = self.tree, self._bytes, self._buffers
        short = Room(wanted.bytes + kept - ledger.free, wanted.buffers - buffers.free)
        if max(short) <= 0:
            return True
        left = tree.evictable()
        if short.bytes > self._charged(left) or short.buffers > left.buffers:
            return False
        tree.evict(min(short.bytes, left.bytes), step, short.buffers)
        self.follow()
        return wanted.bytes + kept <= ledger.free and wanted.buffers <= buffers.free

    def shed(self, step: int) -> None:
        """Evict half of what can go."""
        self.tree.evict(self.tree.evictable().bytes // 2, step)
        self.follow()

    def wanted(self, tokens: int, sliding_tokens: int) -> Room:
        """What a capture of `tokens` tokens takes, with sliding K/V of so many of them."""
        room = Room(self._facts.stored_bytes(tokens, sliding_tokens), KINDS_STORED)
        return Room(self._charged(room), KINDS_STORED)

    def promise(self, wanted: Room) -> None:
        """Reserve what was made room for."""
        self._bytes.reserve("snapshots", wanted.bytes)
        self._buffers.reserve("snapshots", wanted.buffers)
        self._promised = Room.sum(self._promised, wanted)

    def end_promises(self) -> None:
        """The step is done: what it captured is inserted next, or was never made."""
        self._bytes.give_back("snapshots", self._promised.bytes)
        self._buffers.give_back("snapshots", self._promised.buffers)
        self._promised = Room(0)

    def insert(
        self, lease: Lease, tokens: array[int], payload: Payload, step: int, turn_end: bool
    ) -> bool:
        """Store a capture along a lease. Takes `payload`; its promise has ended.

        False where what storing it may cut finds no room, or takes pins beyond their bound: then it
        is dropped.
        """
        assert not self.promising, "the ledger would count this capture twice"
        cuts, of_pins = self.tree.cuts_max(lease, tokens, payload)
        fits = not of_pins or self.keeps_bound(of_pins)
        if not (fits and self.make(self._stored_room(payload, cuts), step)):
            payload.close()
            return False
        self.tree.extend(lease, tokens, payload, step, turn_end=turn_end)
        if turn_end:
            self.tree.settle(lease)
        self.follow()
        self.version += 1  # even where what was evicted for it weighs the same
        return True

    def release(self, lease: Lease, step: int) -> None:
        """End a lease or a pin. What it covers stays."""
        self.tree.release(lease, step)
        self.follow()

    def pin(self, lease: Lease, root: bytes, tokens: Sequence[int], step: int) -> Lease | None:
        """Keep `tokens`, stored along a live lease. None where some went or room is short."""
        self.tree.keep(lease)  # what makes room takes nothing of it
        if not self.make(self.cuts(2), step):
            return None
        kept = self.tree.pin(root, tokens, step)
        self.follow()
        return kept

    def clear(self, order: Clear, running: Iterable[Lease]) -> Swept:
        """Tree.clear."""
        swept = self.tree.clear(order.tokens, running)
        self.follow()
        return swept

    def clear_root(self, root: bytes, running: Iterable[Lease]) -> Swept:
        """Tree.clear_root."""
        swept = self.tree.clear_root(root, running)
        self.follow()
        return swept

    def follow(self) -> None:
        """The tree may have changed: the ledgers hold what it holds, and matches are old."""
        tree, promised = self.tree, Room.sum(self._promised, self._coming)
        taken = self._charged(Room(tree.bytes, tree.buffers)) + promised.bytes
        more = taken - self._bytes.held("snapshots")
        buffers = tree.buffers + promised.buffers - self._buffers.held("snapshots")
        if more or buffers:
            self._bytes.adjust("snapshots", more)
            self._buffers.adjust("snapshots", buffers)
            self.version += 1

    def check(self) -> None:
        """M1."""
        promised = Room.sum(self._promised, self._coming)
        stored = Room(self.tree.bytes, self.tree.buffers)
        held = Room(self._bytes.held("snapshots"), self._buffers.held("snapshots"))
        total = (self._charged(stored) + promised.bytes, stored.buffers + promised.buffers)
        assert held == total, f"M1: {held} held, {stored} + {promised}"

    def cuts(self, cuts: int) -> Room:
        """What so many cuts of edges take at most, as it is charged."""
        pieces = cuts * KINDS_STORED
        return self.charged(Room(pieces * (self._facts.page_bytes - 1), pieces))

    def charged(self, room: Room) -> Room:
        """The same, with what MLX may hand out beyond it."""
        return Room(self._charged(room), room.buffers)

    def keeps_bound(self, cuts: int = 0) -> bool:
        """Whether what pins keep stays within pins_max, were it cut so often."""
        kept, more, bound = self.charged(self.tree.pinned), self.cuts(cuts), self.pins_max
        if kept.bytes + more.bytes > bound.bytes:
            return False
        return not self._facts.buffers_max or kept.buffers + more.buffers <= bound.buffers

    def _charged(self, room: Room) -> int:
        """Bytes of the ledger for so many bytes in so many buffers."""
        return room.bytes + room.buffers * self._facts.reuse_bytes

    def _stored_room(self, payload: Payload, cuts: int) -> Room:
        """What storing `payload` takes at most, with all that is cut for it."""
        stored = Room(payload.full_bytes + payload.sliding_bytes, KINDS_STORED)
        facts, cut = self._facts, self.cuts(cuts)
        if facts.page_bytes == 1 and not facts.buffers_max and not facts.reuse_bytes:
            return Room(stored.bytes)  # a cut takes nothing then
        return Room(self._charged(stored) + cut.bytes, stored.buffers + cut.buffers)

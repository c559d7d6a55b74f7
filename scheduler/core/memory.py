"""Tree and ledger move together here, and nowhere else: every byte is reserved before it is asked.

- A slot's live K/V is reserved for its worst case at admission and given back at release, with the
  step's transient for its rows. The transient of prefill slices is reserved while anybody lives,
  for the longest of them.
- A capture is *promised* its worst case when it is planned. At commit all promises are given back
  first and the ledger follows what the tree really took.
- held("snapshots") == bytes of the tree + promised, at every boundary, and for each buffer of both
  what MLX may hand out beyond what is asked. The tree does not know of that.
- Buffers are counted beside bytes, in a ledger of their own: where the device bounds them, what
  does not find one waits or evicts as it would for bytes.
- Cutting an edge takes a page and a buffer more of each kind of layer. So room for all cuts is made
  before a capture is inserted, and what finds none is not stored.
- Evicting spoils lent payloads and may thin even a window that a lease stands on, but for what is
  due to be restored. So paths are taken after a plan's last eviction.
- What a slot holds by reference is leased, and so stays: it is the tree's, and counted there.
"""

from __future__ import annotations

from array import array

from sapwood.cache.prefix.ledger import Ledger, LedgerView
from sapwood.cache.prefix.node import Lease, Room
from sapwood.cache.prefix.snapshot import Payload
from sapwood.cache.prefix.tree import Match, Tree
from sapwood.scheduler.core.demand import Demand, alone_bytes, workspace_bytes
from sapwood.scheduler.core.sequence import Sequence
from sapwood.scheduler.events import Request
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.model_facts import ModelFacts
from sapwood.scheduler.policy.reference import long_tokens, read_once_tokens

NOTHING = Match(tokens=0, matched=0, evicted=False)


KINDS_STORED = 2  # full layers and sliding ones: as many buffers has an edge at most
UNCOUNTED = 1 << 62


class DeviceMemory:
    """The device's bytes as the core sees them."""

    def __init__(self, facts: ModelFacts, limits: Limits, tree: Tree, ledger: Ledger) -> None:
        self._facts = facts
        self._limits = limits
        self._tree = tree
        self._ledger = ledger
        self._buffers = Ledger(facts.buffers_max or UNCOUNTED, facts.weights_buffers)
        assert facts.live_buffers <= self._buffers.free, "L5: one slot has too many buffers"
        self._promised = Room(0)
        self._slots: list[Demand] = []
        self._version = 0  # of what the tree can match

    @property
    def bytes(self) -> LedgerView:
        """The account of the device's bytes."""
        return self._ledger.view()

    @property
    def buffers(self) -> LedgerView:
        """The account of the device's buffers, whether it bounds them or not."""
        return self._buffers.view()

    def servable(self, request: Request) -> bool:
        """L5: whether it would fit were it alone."""
        wanted = alone_bytes(self._facts, self._limits, Demand.of(request, self._facts))
        return wanted <= self._ledger.budget_bytes - self._ledger.weights_bytes

    def match(self, sequence: Sequence) -> Match:
        """What the tree has of the prompt; asked again only after the tree changed."""
        request = sequence.request
        if request.cache_bypass:
            sequence.match = NOTHING
        elif sequence.match is None or sequence.match_version != self._version:
            sequence.match = self._tree.match(request.root, sequence.packed_prompt)
            sequence.match_version = self._version
        return sequence.match

    def may_fit(self, sequence: Sequence) -> bool:
        """Whether reserve_slot() is worth trying; cheap, so that it can be asked before match()."""
        if self._slots and sequence.refused_room == self._room():
            return False
        free, _, evictable, _ = self._room()
        # From below: as much as it may hold by reference needs no room of its own.
        least = sequence.demand._replace(base=sequence.prompt_tokens - 1)
        return sum(self._slot_bytes(least)) <= free + evictable

    def reserve_slot(self, sequence: Sequence, step: int) -> bool:
        """Lease the matched prefix and reserve the slot's bytes, evicting what that takes.

        False, with nothing evicted, where it does not fit beside what is leased. A sequence that is
        alone always fits: where its own prefix is in the way it goes without.
        """
        alone = not self._slots and not any(self._promised)
        self._lease(sequence, self.match(sequence).tokens, step)
        wanted = self._slot_room(sequence)
        if wanted.bytes > self._ledger.free:
            self._refer(sequence, self._long(sequence))
            wanted = self._slot_room(sequence)
        fits = self._make_room(wanted, step)
        if not fits and alone:
            self.forget(sequence, step)
            self._lease(sequence, 0, step)
            wanted = self._slot_room(sequence)
            fits = self._make_room(wanted, step)
            assert fits, f"L5: {wanted} does not fit alone: {sequence.tell()}"
        if not fits:
            self.forget(sequence, step)
            sequence.refused_room = self._room()
            return False
        self._take_slot(sequence)
        return True

    def restore(self, sequences: tuple[Sequence, ...]) -> list[tuple[Payload, ...]]:
        """The payloads to restore each sequence's [0, stored) from, lent until the commit.

        Comes after the plan's last eviction. Who shares what is known now: who holds more by
        reference for it gives room back.
        """
        leases = [sequence.lease for sequence in sequences]
        for sequence in sequences:
            if (base := self._shared(sequence)) > sequence.base:
                self._refer_instead(sequence, base)
        for lease in leases:
            if lease is not None and lease.end:
                self._tree.hit(lease)
        return [self._tree.path(lease) if lease is not None else () for lease in leases]

    def seal(self, sequence: Sequence) -> bool:
        """Hold all of a slot by reference from now on: where it is stored, and room is short.

        As long as another one like it would find room at once, its row stays: it is read quicker.
        """
        lease = sequence.lease
        if lease is None or lease.end < sequence.evaluated:
            return False
        if lease.end <= sequence.base or self._slot_room(sequence).bytes <= self._ledger.free:
            return False
        if self._long(sequence) < lease.end:
            return False
        self._refer_instead(sequence, lease.end)
        return True

    @property
    def reshaped(self) -> int:
        """Tree.reshaped."""
        return self._tree.reshaped

    def path(self, sequence: Sequence) -> tuple[Payload, ...]:
        """What the sequence's lease covers, lent until the commit."""
        assert sequence.lease is not None, sequence.tell()
        return self._tree.path(sequence.lease)

    def promise(self, tokens: int, sliding_tokens: int, step: int) -> bool:
        """Reserve a capture of `tokens` tokens, evicting older snapshots for it if need be.

        sliding_tokens: of how many of them sliding layers have K/V. False, with nothing evicted,
        where it does not fit, or is more than one edge can hold.
        """
        promised = Room(self._facts.stored_bytes(tokens, sliding_tokens), KINDS_STORED)
        wanted = Room(self._charged(promised), KINDS_STORED)
        if tokens > self._facts.edge_tokens_max or not self._make_room(wanted, step):
            return False
        self._ledger.reserve("snapshots", wanted.bytes)
        self._buffers.reserve("snapshots", wanted.buffers)
        bytes_, buffers = self._promised
        self._promised = Room(bytes_ + promised.bytes, buffers + promised.buffers)
        return True

    @property
    def ring_tokens(self) -> int:
        """Tokens of sliding K/V that a slot's live ring holds at most."""
        per_token = self._facts.sliding_bytes_per_token
        return self._facts.ring_bytes // per_token if per_token else 0

    def end_promises(self) -> None:
        """The step is done: what it captured is inserted next, or was never made."""
        self._ledger.give_back("snapshots", self._charged(self._promised))
        self._buffers.give_back("snapshots", self._promised.buffers)
        self._promised = Room(0)

    def insert(self, sequence: Sequence, payload: Payload, step: int, turn_end: bool) -> bool:
        """Store a capture along the sequence's lease. Takes `payload`; its promise has ended.

        False where what storing it may cut finds no room: then it is dropped.
        """
        assert sequence.lease is not None, sequence.tell()
        assert not any(self._promised), "the ledger would count this capture twice"
        end = payload.end
        tokens = sequence.packed_prompt
        if end > sequence.prompt_tokens:
            tokens = tokens + sequence.packed_reply(end)
        if not self._make_room(self._stored_room(sequence.lease, tokens, payload), step):
            payload.close()
            return False
        self._tree.extend(sequence.lease, tokens, payload, step, turn_end=turn_end)
        if turn_end:
            self._tree.settle(sequence.lease)
        self._follow()
        self._version += 1  # even where what was evicted for it weighs the same
        return True

    def free_slot(self, sequence: Sequence) -> None:
        """The plan releases the sequence's slot."""
        self._slots.remove(sequence.demand)
        live, workspace = self._slot_bytes(sequence.demand)
        self._ledger.give_back("live", live)
        self._ledger.give_back("workspace", workspace)
        self._buffers.give_back("live", self._facts.live_buffers)

    def _take_slot(self, sequence: Sequence) -> None:
        """There is room for it: what it takes is reserved."""
        live, workspace = self._slot_bytes(sequence.demand)
        self._slots.append(sequence.demand)
        self._ledger.reserve("live", live)
        self._ledger.reserve("workspace", workspace)
        self._buffers.reserve("live", self._facts.live_buffers)

    def forget(self, sequence: Sequence, step: int) -> None:
        """End the sequence's lease, if it has one. What it stored stays."""
        if sequence.lease is not None:
            self._tree.release(sequence.lease, step)
            self._follow()
            sequence.lease = None

    def close(self) -> None:
        """The engine ends, nobody lives: drop the tree, and every byte must be back (M3)."""
        assert not self._slots and not any(self._promised), f"{len(self._slots)} slots are taken"
        self._tree.drop()
        self._follow()
        assert not self._tree.nodes, f"M3: {self._tree.nodes} nodes are leased by nobody who lives"
        self._ledger.check_empty()
        self._buffers.check_empty()

    def check(self, slots: int) -> None:
        """Assert M1 and the tree's invariants. `slots`: how many are taken. O(tree)."""
        self._tree.check()
        self._ledger.check()
        self._buffers.check()
        assert slots == len(self._slots), f"{len(self._slots)} slots reserved, {slots} taken"
        workspace = self._ledger.held("workspace")
        assert workspace == self._workspace(self._slots), f"M1: {workspace} bytes of workspace"
        promised, stored = self._promised, Room(self._tree.bytes, self._tree.buffers)
        held = Room(self._ledger.held("snapshots"), self._buffers.held("snapshots"))
        buffers = stored.buffers + promised.buffers
        total = (self._charged(stored) + self._charged(promised), buffers)
        assert held == total, f"M1: {held} held, {stored} + {promised}"
        live = self._buffers.held("live")
        assert live == slots * self._facts.live_buffers, f"M1: {live} buffers of {slots} slots"

    def _slot_room(self, sequence: Sequence) -> Room:
        return Room(sum(self._slot_bytes(sequence.demand)), self._facts.live_buffers)

    def _slot_bytes(self, demand: Demand) -> tuple[int, int]:
        """Live K/V of a slot, and what workspace grows by when it joins those that there are."""
        joined = self._workspace([*self._slots, demand])
        return self._facts.live_bytes(demand.row_tokens), joined - self._workspace(self._slots)

    def _workspace(self, slots: list[Demand]) -> int:
        return workspace_bytes(self._facts, self._limits, slots)

    def _room(self) -> tuple[int, ...]:
        evictable = self._tree.evictable()
        free = self._ledger.free, self._buffers.free
        return *free, self._charged(evictable), evictable.buffers

    def _make_room(self, wanted: Room, step: int) -> bool:
        """Evict so that `wanted` is free; False, with nothing evicted, if it cannot be."""
        tree, ledger, buffers = self._tree, self._ledger, self._buffers
        short = Room(wanted.bytes - ledger.free, wanted.buffers - buffers.free)
        if max(short) <= 0:
            return True
        left = tree.evictable()
        if short.bytes > self._charged(left) or short.buffers > left.buffers:
            return False
        tree.evict(min(short.bytes, left.bytes), step, short.buffers)
        self._follow()
        return wanted.bytes <= ledger.free and wanted.buffers <= buffers.free

    def _stored_room(self, lease: Lease, tokens: array[int], payload: Payload) -> Room:
        """What storing `payload` takes at most, with all that is cut for it."""
        stored = payload.full_bytes + payload.sliding_bytes
        facts = self._facts
        if facts.page_bytes == 1 and not facts.buffers_max and not facts.reuse_bytes:
            return Room(stored)  # a cut takes nothing then
        pieces = self._tree.cuts_max(lease, tokens, payload) * KINDS_STORED
        room = Room(stored + pieces * (facts.page_bytes - 1), pieces + KINDS_STORED)
        return Room(self._charged(room), room.buffers)

    def _follow(self) -> None:
        """The tree may have changed: the ledgers hold what it holds, and matches are old."""
        tree, promised = self._tree, self._promised
        taken = Room(tree.bytes + promised.bytes, tree.buffers + promised.buffers)
        more = self._charged(taken) - self._ledger.held("snapshots")
        buffers = taken.buffers - self._buffers.held("snapshots")
        if more or buffers:
            self._ledger.adjust("snapshots", more)
            self._buffers.adjust("snapshots", buffers)
            self._version += 1

    def _charged(self, room: Room) -> int:
        """Bytes of the ledger for so many bytes in so many buffers."""
        return room.bytes + room.buffers * self._facts.reuse_bytes

    def _lease(self, sequence: Sequence, end: int, step: int) -> None:
        request = sequence.request
        if request.cache_bypass:
            return
        sequence.lease = self._tree.lease(request.root, sequence.packed_prompt, end, step)
        self._refer(sequence, self._shared(sequence))
        if end:
            self._tree.keep(sequence.lease)

    def _shared(self, sequence: Sequence) -> int:
        """How much of its path is worth being read once for all who hold it."""
        if sequence.lease is None:
            return 0
        return read_once_tokens(self._tree.edges(sequence.lease), self._limits.referred_reads_min)

    def _long(self, sequence: Sequence) -> int:
        """And how much where room is short."""
        if sequence.lease is None:
            return 0
        edges = self._tree.edges(sequence.lease)
        return max(sequence.base, long_tokens(edges, self._limits.referred_edge_tokens_min))

    def _refer(self, sequence: Sequence, base: int) -> None:
        sequence.demand = sequence.demand._replace(base=base)

    def _refer_instead(self, sequence: Sequence, base: int) -> None:
        """More by reference than its slot was reserved with: the rest is given back."""
        self.free_slot(sequence)
        self._refer(sequence, base)
        self._take_slot(sequence)

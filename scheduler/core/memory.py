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
- Evicting spoils lent payloads and may thin even a window that a lease stands on. So paths are
  taken after a plan's last eviction, and what is due to be restored in it is left alone.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

from sapwood.cache.prefix.ledger import Ledger, LedgerView
from sapwood.cache.prefix.node import Lease, Room
from sapwood.cache.prefix.snapshot import Payload
from sapwood.cache.prefix.tree import Match, Tree
from sapwood.scheduler.core.sequence import Sequence
from sapwood.scheduler.events import Request
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.model_facts import ModelFacts

NOTHING = Match(tokens=0, matched=0, evicted=False)


class Demand(NamedTuple):
    """What a slot's bytes follow from: the tokens it may grow to, and how it draws."""

    tokens_max: int
    draw_bytes_per_row: int = 0

    @classmethod
    def of(cls, request: Request, facts: ModelFacts) -> Demand:
        """What a request may grow to, with the bytes that its sampler takes for each row."""
        return cls(request.tokens_max, facts.draw_bytes_per_row(request.sampling))


KINDS_STORED = 2  # full layers and sliding ones: as many buffers has an edge at most
UNCOUNTED = 1 << 62

# A prompt of one token, a reply of one, greedy: no request asks for less.
DEMAND_MIN = Demand(tokens_max=2)


def alone_bytes(facts: ModelFacts, limits: Limits, demand: Demand) -> int:
    """L5: what a sequence needs beside the weights, were it alone: K/V and largest step."""
    return facts.live_bytes(demand.tokens_max) + _workspace(facts, limits, [demand])


def _workspace(facts: ModelFacts, limits: Limits, slots: list[Demand]) -> int:
    """Transient of the largest step with these slots, or of their pools' growing before it."""
    if not slots:
        return 0
    rows = 1 + (limits.draft_depth_max if facts.has_drafter else 0)
    rounds = sum(facts.round_bytes(rows, *slot) for slot in slots)
    longest = max(slot.tokens_max for slot in slots)
    step = rounds + facts.prefill_bytes(limits.prefill_tokens_max, longest)
    step += facts.late_bytes(len(slots) * rows + limits.prefill_tokens_max)
    return max(step, sum(facts.moved_bytes(slot.tokens_max) for slot in slots))


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
        self._due: list[Lease] = []  # of sequences that the plan in the making restores
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
        return sum(self._slot_bytes(sequence)) <= free + evictable

    def reserve_slot(self, sequence: Sequence, step: int) -> bool:
        """Lease the matched prefix and reserve the slot's bytes, evicting what that takes.

        False, with nothing evicted, where it does not fit beside what is leased. A sequence that is
        alone always fits: where its own prefix is in the way it goes without.
        """
        alone = not self._slots and not any(self._promised)
        self._lease(sequence, self.match(sequence).tokens, step)
        live, workspace = self._slot_bytes(sequence)
        wanted = Room(live + workspace, self._facts.live_buffers)
        fits = self._make_room(wanted, step)
        if not fits and alone:
            self.forget(sequence, step)
            self._lease(sequence, 0, step)
            fits = self._make_room(wanted, step)
            assert fits, f"L5: {wanted} does not fit alone: {sequence.tell()}"
        if not fits:
            self.forget(sequence, step)
            sequence.refused_room = self._room()
            return False
        self._slots.append(Demand.of(sequence.request, self._facts))
        self._ledger.reserve("live", live)
        self._ledger.reserve("workspace", workspace)
        self._buffers.reserve("live", wanted.buffers)
        return True

    def restore(self, sequences: tuple[Sequence, ...], step: int) -> list[tuple[Payload, ...]]:
        """The payloads to restore each sequence's [0, stored) from, lent until the commit.

        Comes after the plan's last eviction and shortens the leases to what is still whole then;
        that may merge nodes, so all are shortened before the first path is taken.
        """
        for sequence in sequences:
            lease, request = sequence.lease, sequence.request
            if lease is not None and lease.end:
                left = self._tree.match(request.root, sequence.packed_prompt, lease.end).tokens
                if left < lease.end:
                    self._shorten(sequence, lease, left, step)
        self._due.clear()
        for sequence in sequences:
            if sequence.lease is not None and sequence.lease.end:
                self._tree.hit(sequence.lease)
        return [self._tree.path(s.lease) if s.lease is not None else () for s in sequences]

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
        self._follow()
        self._version += 1  # even where what was evicted for it weighs the same
        return True

    def free_slot(self, sequence: Sequence) -> None:
        """The plan releases the sequence's slot."""
        self._slots.remove(Demand.of(sequence.request, self._facts))
        live, workspace = self._slot_bytes(sequence)
        self._ledger.give_back("live", live)
        self._ledger.give_back("workspace", workspace)
        self._buffers.give_back("live", self._facts.live_buffers)

    def forget(self, sequence: Sequence, step: int) -> None:
        """End the sequence's lease, if it has one. What it stored stays."""
        if sequence.lease is not None:
            if sequence.lease in self._due:
                self._due.remove(sequence.lease)
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

    def _slot_bytes(self, sequence: Sequence) -> tuple[int, int]:
        """Live K/V of a slot, and what workspace grows by when it joins those that there are."""
        demand = Demand.of(sequence.request, self._facts)
        joined = self._workspace([*self._slots, demand])
        return self._facts.live_bytes(demand.tokens_max), joined - self._workspace(self._slots)

    def _workspace(self, slots: list[Demand]) -> int:
        return _workspace(self._facts, self._limits, slots)

    def _room(self) -> tuple[int, ...]:
        evictable = Room(self._tree.evictable_bytes(), self._tree.evictable_buffers())
        free = self._ledger.free, self._buffers.free
        return *free, self._charged(evictable), evictable.buffers

    def _make_room(self, wanted: Room, step: int) -> bool:
        """Evict so that `wanted` is free; False, with nothing evicted, if it cannot be."""
        tree, ledger, buffers = self._tree, self._ledger, self._buffers
        short = Room(wanted.bytes - ledger.free, wanted.buffers - buffers.free)
        if max(short) <= 0:
            return True
        due = self._due_room()
        left = Room(tree.evictable_bytes() - due.bytes, tree.evictable_buffers() - due.buffers)
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

    def _due_room(self) -> Room:
        """Sliding K/V that this plan is about to restore: not worth giving away for anything."""
        paths = (self._tree.path(lease) for lease in self._due)
        held = {id(part): part.sliding_bytes for path in paths for part in path}.values()
        return Room(sum(held), sum(map(bool, held)))

    def _lease(self, sequence: Sequence, end: int, step: int) -> None:
        request = sequence.request
        if request.cache_bypass:
            return
        sequence.lease = self._tree.lease(request.root, sequence.packed_prompt, end, step)
        if end:
            self._due.append(sequence.lease)

    def _shorten(self, sequence: Sequence, lease: Lease, end: int, step: int) -> None:
        """Lease less, and only then give up the longer lease: what is left never lies bare."""
        self._lease(sequence, end, step)
        self._due.remove(lease)
        self._tree.release(lease, step)
        self._follow()

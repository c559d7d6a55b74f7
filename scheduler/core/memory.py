"""Tree and ledgers move together here, and nowhere else: every byte is reserved before it is asked.

- A slot's live K/V is reserved for its prompt and the next rounds, and grows before it is written
  (slot_rooms.py). Who is admitted also has room beside what is expected of all who live: a guess.
  What holds without it: whoever lives could have all the device, and the oldest gets it (L5, L7).
- What the tree stores is made room for by evicting from it (snapshot_room.py).
- A capture out of a slot is made before any slot is released: it has room beside all that the plan
  found, but for the workspace, which nobody uses yet.
- Evicting spoils lent payloads and may thin even a window that a lease stands on, but for what is
  due to be restored. So paths are taken after a plan's last eviction.
- What a slot holds by reference is leased, and so stays: it is the tree's, and counted there.
"""

from __future__ import annotations

from sapwood.cache.prefix.leases import PIN_MARGIN_TOKENS
from sapwood.cache.prefix.ledger import Ledger, LedgerView
from sapwood.cache.prefix.node import Room
from sapwood.cache.prefix.snapshot import Payload
from sapwood.cache.prefix.tree import Match, Tree
from sapwood.scheduler.core.demand import Demand, round_rows, slots_bytes
from sapwood.scheduler.core.disk_tier import DiskTier, NoDisk, ReadingTime
from sapwood.scheduler.core.pins import Pins
from sapwood.scheduler.core.public_pins import PublicPins
from sapwood.scheduler.core.sequence import Sequence
from sapwood.scheduler.core.slot_rooms import SlotRooms
from sapwood.scheduler.core.snapshot_room import SnapshotRoom
from sapwood.scheduler.disk import DiskFolder
from sapwood.scheduler.events import Clear, Request
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.model_facts import ModelFacts
from sapwood.scheduler.policy.reference import long_tokens, read_once_tokens
from sapwood.scheduler.policy.reply_length import ReplyLength

NOTHING = Match(tokens=0, matched=0, evicted=False)
UNCOUNTED = 1 << 62


class DeviceMemory:
    """The device's bytes as the core sees them."""

    def __init__(
        self,
        facts: ModelFacts,
        limits: Limits,
        tree: Tree,
        ledger: Ledger,
        reply_length: ReplyLength,
    ) -> None:
        self._facts, self._limits = facts, limits
        self._tree, self._ledger = tree, ledger
        self._reply_length = reply_length
        self._buffers = Ledger(facts.buffers_max or UNCOUNTED, facts.weights_buffers)
        assert facts.live_buffers <= self._buffers.free, "L5: one slot has too many buffers"
        self._slots = SlotRooms(facts, limits, ledger, self._buffers)
        self._stored = SnapshotRoom(facts, tree, ledger, self._buffers)
        self.pins = Pins(facts, limits, tree, self._stored, ledger, self._buffers)
        self.public = PublicPins(limits, tree, self._stored, self.pins)
        self.disk = NoDisk()

    def use_disk(self, folder: DiskFolder, reading_s: ReadingTime) -> None:
        """Keep prefixes there too. Before anybody comes."""
        self.disk = DiskTier(self._facts, self._limits, self._stored, folder, reading_s)

    @property
    def bytes(self) -> LedgerView:
        """The account of the device's bytes."""
        return self._ledger.view()

    @property
    def buffers(self) -> LedgerView:
        """The account of the device's buffers, whether it bounds them or not."""
        return self._buffers.view()

    def servable(self, request: Request) -> bool:
        """L5: whether it would fit beside the pins were it alone."""
        wanted = slots_bytes(self._facts, self._limits, [Demand.of(request, self._facts)])
        return wanted <= self.pins.bytes_beside

    def match(self, sequence: Sequence) -> Match:
        """What the tree has of the prompt; asked again only after the tree changed."""
        if not sequence.reads_tree:
            sequence.match = NOTHING
        elif sequence.match is None or sequence.match_version != self._stored.version:
            limit = sequence.restored_max
            sequence.match = self._tree.match(sequence.request.root, sequence.packed, limit)
            sequence.match_version = self._stored.version
        return sequence.match

    def begin_plan(self, step: int, now: float) -> None:
        """Before anything of a plan is decided."""
        self.disk.begin_plan(step, now)
        self._slots.begin()
        if self._slots.many_holes:
            self._slots.pack()

    @property
    def packs(self) -> bool:
        """Whether pools are packed."""
        return self._slots.packed

    @property
    def grown(self) -> list[int]:
        """Whose slots grow with the plan, by their ids, in the order in which it was decided."""
        return self._slots.grown

    def may_fit(self, sequence: Sequence) -> bool:
        """Whether reserve_slot() is worth trying; cheap, so that it can be asked before match()."""
        if len(self._slots) and sequence.refused_room == self._stored.state():
            return False
        if self._slots.holed:
            return True
        # From below: as much as it may hold by reference needs no room of its own.
        least = self._demand(sequence, len(sequence.prefix) - 1)
        return self._slots.missing(sequence.id, least) <= self._stored.within_reach

    def reserve_slot(self, sequence: Sequence, step: int) -> bool:
        """Lease the matched prefix and reserve the slot's bytes, evicting what that takes.

        False, with nothing evicted, where it does not fit beside what is leased, or what is
        expected of those that live. A sequence that is alone always fits: where its own prefix is
        in the way it goes without.
        """
        alone = not len(self._slots) and not self._stored.promising
        self._lease(sequence, self.match(sequence).tokens, step)
        if self._missing(sequence).bytes > self._ledger.free:
            self._refer(sequence, self._long(sequence))
        fits = (alone or self._is_expected(sequence)) and self._make_slot_room(sequence, step)
        if not fits and alone:
            self.forget(sequence, step)
            self._lease(sequence, 0, step)
            fits = self._make_slot_room(sequence, step)
            assert fits, f"L5: it does not fit alone: {sequence.tell()}"
        if not fits:
            self.forget(sequence, step)
            sequence.refused_room = self._stored.state()
            return False
        self._slots.set(sequence.id, sequence.demand)
        return True

    def grow(self, sequence: Sequence, step: int) -> bool:
        """Reserve what the next round of a slot may write, evicting what that takes.

        False where somebody has to go first. Of one that is alone the tree gives up what it has of
        it, where that is in the way: nothing but what it refers to is ever too much for it (L5).
        """
        was = sequence.demand
        if was.tokens >= self._tokens(sequence):
            return True
        self._refer(sequence, sequence.base)
        fits = self._make_slot_room(sequence, step)
        if not fits and len(self._slots) == 1 and not sequence.base:
            self.forget(sequence, step)
            self._lease(sequence, 0, step)
            fits = self._make_slot_room(sequence, step)
        if not fits:
            sequence.demand = was
            return False
        self._slots.set(sequence.id, sequence.demand)
        return True

    def restore(self, sequences: tuple[Sequence, ...]) -> list[tuple[Payload, ...]]:
        """The payloads to restore each sequence's [0, stored) from, lent until the commit.

        Comes after the plan's last eviction. Who shares what is known now: who can hold more by
        reference for it does.
        """
        leases = [sequence.lease for sequence in sequences]
        for sequence in sequences:
            if (base := self._shared(sequence)) > sequence.base:
                self._resize(sequence, base)
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
        another = self._facts.live_bytes(sequence.demand.row_tokens)
        gains = sequence.base < self._facts.referred_tokens(lease.end)
        if another <= self._ledger.free or not gains or lease.end > self._long(sequence):
            return False
        return self._resize(sequence, lease.end, sealed=True)

    @property
    def reshaped(self) -> int:
        """Tree.reshaped."""
        return self._tree.reshaped

    def path(self, sequence: Sequence) -> tuple[Payload, ...]:
        """What the sequence's lease covers, lent until the commit."""
        assert sequence.lease is not None, sequence.tell()
        return self._tree.path(sequence.lease)

    def promise(self, tokens: int, sliding_tokens: int, step: int, *, of_slot: bool) -> bool:
        """Reserve a capture of `tokens` tokens, evicting older snapshots for it if need be.

        sliding_tokens: of how many of them sliding layers have K/V. of_slot: it is copied out of a
        slot that the plan releases, and whose ring holds no more of them than it can. False, with
        nothing evicted, where it does not fit, or is more than one edge can hold.
        """
        sliding = min(sliding_tokens, self._facts.ring_tokens) if of_slot else sliding_tokens
        wanted = self._stored.wanted(tokens, sliding)
        if tokens > self._facts.edge_tokens_max:
            return False
        if wanted.bytes > self._ledger.free and self._slots.holed:
            self._slots.pack()
        if not self._stored.make(wanted, step, self._freed_later if of_slot else 0):
            return False
        self._stored.promise(wanted)
        return True

    def end_promises(self) -> None:
        """The step is done: what it captured is inserted next, or was never made."""
        self._stored.end_promises()

    def insert(self, sequence: Sequence, payload: Payload, step: int, turn_end: bool) -> bool:
        """Store a capture along the sequence's lease. Takes `payload`; its promise has ended.

        False where what storing it may cut finds no room: then it is dropped.
        """
        assert sequence.lease is not None, sequence.tell()
        tokens, end = sequence.packed_path(payload.end), payload.end
        stored = self._stored.insert(sequence.lease, tokens, payload, step, turn_end)
        self.disk.stored(sequence, end if stored and turn_end else 0)
        return stored

    def free_slot(self, sequence: Sequence) -> None:
        """The plan releases the sequence's slot."""
        self._slots.leave(sequence.id)

    def lose_slots(self, step: int) -> None:
        """The device lacked memory for a step, and dropped all slots; the tree makes room."""
        self.end_promises()
        self._slots.lose()
        self._stored.shed(step)

    def forget(self, sequence: Sequence, step: int) -> None:
        """End the sequence's lease, if it has one. What it stored stays, but what was cleared."""
        if sequence.lease is not None:
            sequence.cleared = sequence.lease.doomed
            self._stored.release(sequence.lease, step)
            sequence.lease = None

    def close(self) -> None:
        """The engine ends, nobody lives: drop the tree, and every byte must be back (M3)."""
        assert not len(self._slots) and not self._stored.promising, "slots are taken"
        self._stored.clear(Clear(0), ())
        assert not self._tree.nodes, f"M3: {self._tree.nodes} nodes are leased by nobody who lives"
        self._ledger.check_empty()
        self._buffers.check_empty()

    def check(self, slots: int) -> None:
        """Assert M1 and the tree's invariants. `slots`: how many are taken. O(tree)."""
        self._tree.check()
        self._ledger.check()
        self._buffers.check()
        assert slots == len(self._slots), f"{len(self._slots)} slots reserved, {slots} taken"
        self._slots.check()
        self._stored.check()

    def _missing(self, sequence: Sequence) -> Room:
        """What the sequence's slot takes beyond what is held."""
        buffers = 0 if sequence.slot >= 0 else self._facts.live_buffers
        return Room(max(0, self._slots.missing(sequence.id, sequence.demand)), buffers)

    def _make_slot_room(self, sequence: Sequence, step: int) -> bool:
        wanted = self._missing(sequence)
        if wanted.bytes > self._ledger.free and self._slots.holed:
            self._slots.pack()  # a hole that it would have taken is gone: it misses more now
            wanted = self._missing(sequence)
        return self._stored.make(wanted, step)

    def _is_expected(self, sequence: Sequence) -> bool:
        """Whether it fits beside what those that live are expected to take in the end."""
        grown = [
            demand._replace(tokens=max(demand.tokens, demand.expected))
            for demand in (*self._slots.demands, sequence.demand)
        ]
        wanted = slots_bytes(self._facts, self._limits, grown)
        kept = self._ledger.weights_bytes + self._stored.leased_bytes
        return wanted + kept <= self._ledger.budget_bytes

    def _tokens(self, sequence: Sequence) -> int:
        """What a slot has to have room for: all that is read before it draws, and a round."""
        if sequence.forced >= self._limits.parks_max:
            return sequence.tokens_max
        written = max(len(sequence.prefix), sequence.evaluated)
        return min(written + round_rows(self._facts, self._limits), sequence.tokens_max)

    def _demand(self, sequence: Sequence, base: int) -> Demand:
        """What the sequence asks of its slot now: as much as the row that it needs anyway holds."""
        row = self._facts.row_tokens(self._tokens(sequence) - base)
        prompt_tokens, tokens_max = sequence.prompt_tokens, sequence.tokens_max
        reply = self._reply_length.expected(sequence.emitted, tokens_max - prompt_tokens)
        return Demand.of(sequence.request, self._facts)._replace(
            tokens=min(base + row, tokens_max), base=base, expected=prompt_tokens + reply
        )

    @property
    def _freed_later(self) -> int:
        """Of what is free, what lies in slots until the plan has released some."""
        ledger = self._ledger
        held = ledger.weights_bytes + self._slots.found_bytes + ledger.held("snapshots")
        return max(0, ledger.free - (ledger.budget_bytes - held))

    def _lease(self, sequence: Sequence, end: int, step: int) -> None:
        request = sequence.request
        self._refer(sequence, 0)
        if sequence.bypasses:
            return
        margin = PIN_MARGIN_TOKENS if request.pin else 0
        sequence.lease = self._tree.lease(request.root, sequence.packed, end, step, margin)
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

    def _resize(self, sequence: Sequence, base: int, *, sealed: bool = False) -> bool:
        """Hold `base` tokens by reference, if its row finds room beside the hole of the old one."""
        was = sequence.demand
        self._refer(sequence, base)
        fits = self._slots.missing(sequence.id, sequence.demand, sealed) <= self._ledger.free
        if fits:
            self._slots.set(sequence.id, sequence.demand, sealed)
        else:
            sequence.demand = was
        return fits

    def _refer(self, sequence: Sequence, base: int) -> None:
        sequence.demand = self._demand(sequence, self._facts.referred_tokens(base))

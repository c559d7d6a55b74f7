"""Prefixes that are read from disk for a prompt that waits, so that it finds them in the tree.

- A prompt is looked up once, when it could have a slot. While its blocks are read it waits for no
  longer than page_in_s_max, and others go on; then it is what it would have been: a hit, or less.
- Read is what is predicted to take less time than computing it, by what reading and prompts took.
  Where nothing was learned yet, and now and then where it did not pay, it is read.
- Room is held for all that is read, and the path that it goes on from is leased. Both give way to
  whoever needs them (SnapshotRoom): then the rest is computed.
- Of two prompts that go on by the same block the second waits for the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from sapwood.cache.prefix.blocks import Block, Names
from sapwood.cache.prefix.catalogue import Catalogue, DiskFile, DiskReach
from sapwood.cache.prefix.leases import PIN_MARGIN_TOKENS
from sapwood.cache.prefix.node import Lease, Room
from sapwood.cache.prefix.tree import Match, Tree
from sapwood.scheduler.core.sequence import Sequence
from sapwood.scheduler.core.snapshot_room import SnapshotRoom
from sapwood.scheduler.disk import DiskOrder, PagedIn, Read, ReadGroup, StopRead, Touch
from sapwood.scheduler.limits import Limits

READ_RATE = 0.25  # weight of a read in what reading is believed to take
PROBE_EVERY = 32  # so many refused for being slow, and one is read to see


class Found(NamedTuple):
    """What the disk has of a prompt: its first blocks, and which of them are to be read."""

    blocks: list[Block]
    reach: DiskReach

    @property
    def end(self) -> int:
        """Up to where it could be restored then."""
        return self.blocks[self.reach.last - 1].end


@dataclass(slots=True)
class _Reading:
    sequence: Sequence
    lease: Lease
    groups: tuple[ReadGroup, ...]
    rooms: tuple[Room, ...]  # that are held, of each group
    expires_at: float
    names: frozenset[bytes]
    next: int = 0

    @property
    def held(self) -> Room:
        return Room.sum(*self.rooms[self.next :])


@dataclass(slots=True)
class ReadCost:
    """What reading was seen to take: seconds for a byte, 0 before the first time."""

    seconds_per_byte: float = 0.0
    refused: int = field(default=0)

    def observe(self, read_bytes: int, seconds: float) -> None:
        """So many bytes took so long, waiting and opening included."""
        if read_bytes:
            sample, known = seconds / read_bytes, self.seconds_per_byte
            self.seconds_per_byte = sample if not known else known + READ_RATE * (sample - known)

    def pays(self, read_bytes: int, computing_s: float) -> bool:
        """Whether reading is worth it; 0 s: nobody knows what computing takes."""
        if not computing_s or read_bytes * self.seconds_per_byte < computing_s:
            return True
        self.refused += 1
        return self.refused % PROBE_EVERY == 0


class PageIns:
    """Who waits for the disk. Single-threaded, like all of the core."""

    def __init__(
        self,
        limits: Limits,
        tree: Tree,
        stored: SnapshotRoom,
        names: Names,
        catalogue: Catalogue,
        order: Callable[[DiskOrder], None],
    ) -> None:
        self._limits, self._tree, self._stored = limits, tree, stored
        self._names, self._catalogue, self._order = names, catalogue, order
        self._reading: dict[int, _Reading] = {}
        self._drawn = 0
        self.cost = ReadCost()
        self.read_bytes = 0

    def __len__(self) -> int:
        return len(self._reading)

    def waits(self, sequence: Sequence) -> bool:
        """Whether something is being read for it."""
        return any(reading.sequence is sequence for reading in self._reading.values())

    def begin(
        self,
        sequence: Sequence,
        match: Match,
        reading_s: Callable[[int, int], float],
        step: int,
        now: float,
    ) -> bool:
        """Whether the prompt is to wait for the disk; begins to read for it where that pays.

        reading_s: what computing so many tokens from a position on takes, 0 where nobody knows.
        """
        if self.waits(sequence):
            return True
        if sequence.asked_disk:
            return False
        found = self._find(sequence, match)
        if found is not None:
            first = found.blocks[found.reach.first].name
            if any(first in other.names for other in self._reading.values()):
                return True
            if len(self._reading) >= self._limits.page_ins_max:
                return True
        sequence.asked_disk = True
        if found is None:
            return False
        groups = tuple(self._groups(found))
        size = sum(file.size for group in groups for file in group.files)
        if not self.cost.pays(size, reading_s(match.tokens, found.end - match.tokens)):
            return False
        return self._hold(sequence, match, found, groups, step, now)

    def take(self, report: PagedIn, step: int) -> None:
        """A group was read, or was not. Takes its payload."""
        self.cost.observe(report.read_bytes, report.seconds)
        self.read_bytes += report.read_bytes
        reading = self._reading.pop(report.id, None)
        if reading is None:
            if report.payload is not None:
                report.payload.close()
            return
        # Out of the way while it is stored: what makes room for it may stop all that is read.
        self._stored.let_go(reading.held)
        reading.next += 1
        stored = report.payload is not None and self._stored.insert(
            reading.lease, reading.sequence.packed, report.payload, step, turn_end=False
        )
        more = reading.next < len(reading.groups)
        if stored and more and self._stored.hold(reading.held, step):
            self._reading[report.id] = reading
            return
        if more:
            self._order(StopRead(report.id))
        self._stored.release(reading.lease, step)

    def give_up(self, id: int, step: int) -> None:
        """The sequence ended."""
        for number, reading in list(self._reading.items()):
            if reading.sequence.id == id:
                self._stop(number, step)

    def give_way(self, step: int) -> None:
        """Stop all that is read: what is held for it is free, what it lease may go."""
        for number in list(self._reading):
            self._stop(number, step)

    def expire(self, step: int, now: float) -> None:
        """Stop what has taken too long."""
        for number, reading in list(self._reading.items()):
            if now >= reading.expires_at:
                self._stop(number, step)

    def _find(self, sequence: Sequence, match: Match) -> Found | None:
        """What would save something beyond what the tree has."""
        request, tokens = sequence.request, sequence.packed
        limit = len(tokens) - 1 - (PIN_MARGIN_TOKENS if request.pin else 0)
        blocks = self._names.blocks(request.root, tokens, limit)
        reach = self._catalogue.reach(blocks, match.tokens, match.matched, self._tree.window)
        if reach is None:
            return None
        found = Found(blocks, reach)
        saves = found.end - match.tokens >= self._limits.share_tokens_min
        return found if saves else None

    def _groups(self, found: Found) -> Iterator[ReadGroup]:
        """Blocks in order, as many at a time as read_bytes_max allows."""
        reach, kept = found.reach, list[int]()
        size = 0
        for index in range(reach.first, reach.last):
            more = sum(file.size for file in self._files(found, [index]))
            if kept and size + more > self._limits.read_bytes_max:
                yield self._group(found, kept)
                kept, size = [], 0
            kept.append(index)
            size += more
        yield self._group(found, kept)

    def _group(self, found: Found, indices: list[int]) -> ReadGroup:
        files = self._files(found, indices)
        full = tuple(file for file in files if file.kind == "full")
        sliding = tuple(file for file in files if file.kind == "sliding")
        blocks = found.blocks
        return ReadGroup(blocks[indices[0]].start, blocks[indices[-1]].end, full, sliding)

    def _files(self, found: Found, indices: list[int]) -> list[DiskFile]:
        files = [self._catalogue.find(found.blocks[i].name, "full") for i in indices]
        after = [i for i in indices if i >= found.reach.sliding]
        files += [self._catalogue.find(found.blocks[i].name, "sliding") for i in after]
        return [file for file in files if file is not None]

    def _hold(
        self,
        sequence: Sequence,
        match: Match,
        found: Found,
        groups: tuple[ReadGroup, ...],
        step: int,
        now: float,
    ) -> bool:
        """Lease, make room and order; False, with nothing changed, where memory is short."""
        tokens = self._names.block_tokens
        rooms = tuple(self._stored.wanted(g.end - g.start, len(g.sliding) * tokens) for g in groups)
        request = sequence.request
        lease = self._tree.lease(request.root, sequence.packed, match.matched, step)
        if not self._stored.hold(Room.sum(*rooms), step):
            self._stored.release(lease, step)
            return False
        self._drawn += 1
        names = frozenset(b.name for b in found.blocks[found.reach.first : found.reach.last])
        expires_at = now + self._limits.page_in_s_max
        reading = _Reading(sequence, lease, groups, rooms, expires_at, names)
        self._reading[self._drawn] = reading
        used = self._catalogue.touch(found.blocks[: found.reach.last])
        self._order(Touch(tuple(used)))
        self._order(Read(self._drawn, groups))
        return True

    def _stop(self, number: int, step: int) -> None:
        self._order(StopRead(number))
        reading = self._reading.pop(number)
        self._stored.let_go(reading.held)
        self._stored.release(reading.lease, step)

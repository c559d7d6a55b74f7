"""What slots take of the device's memory: rows in its pools, and the transient of their steps.

- A pool is one array. A row that a slot gives back stays in it as a hole, and is paid for, until
  another slot takes it, the pool's last slot goes, or a plan packs. So rows are counted here by the
  rules by which Placement gives them out.
- The device releases, packs, grows, admits and seals, in this order, in whatever order a plan was
  made. So what is held is the plan's changes played in the device's order on what the plan found.
- The ledgers follow each change at once. Whoever makes it asks first what it takes (`missing`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from sapwood.cache.prefix.ledger import Ledger
from sapwood.scheduler.core.demand import Demand, workspace_bytes
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.model_facts import ModelFacts

HOLES_MIN = 2  # of a class, that are worth a copy of its pool while there is room


class RowClass(NamedTuple):
    """Rows of one size, which are one pool in every layer of the kind. bytes: of all its layers."""

    sliding: bool
    bytes: int


class PoolRows:
    """How many rows of each class are taken, and how many there are."""

    def __init__(self, taken: dict[RowClass, int], rows: dict[RowClass, int]) -> None:
        self._taken, self._rows = dict(taken), dict(rows)

    def copy(self) -> PoolRows:
        """Another that changes on its own."""
        return PoolRows(self._taken, self._rows)

    def take(self, row: RowClass) -> None:
        """A hole where there is one, else one row more."""
        taken = self._taken[row] = self._taken.get(row, 0) + 1
        self._rows[row] = max(taken, self._rows.get(row, 0))

    def free(self, row: RowClass) -> None:
        """Leave a hole; the last one takes the class along."""
        self._taken[row] -= 1
        if not self._taken[row]:
            del self._taken[row], self._rows[row]

    def pack(self) -> None:
        """Close all holes."""
        self._rows = dict(self._taken)

    def bytes(self, sliding: bool) -> int:
        """Of all rows of a kind of layer, holes too."""
        return sum(row.bytes * count for row, count in self._rows.items() if row.sliding == sliding)

    @property
    def holed(self) -> bool:
        """Whether there is a hole."""
        return self._rows != self._taken

    @property
    def many_holes(self) -> bool:
        """Whether a class has so many that they are worth closing for their own sake.

        One that a slot leaves as another comes is not.
        """
        return any(
            self._rows[row] - taken >= max(HOLES_MIN, taken // 4 + 1)
            for row, taken in self._taken.items()
        )


class Change(NamedTuple):
    """A slot's demand from a plan on. sealed: its old row goes before the new one is taken."""

    demand: Demand
    sealed: bool = False


class SlotRooms:
    """The slots' part of both ledgers. Slots go by the ids of their sequences."""

    def __init__(self, facts: ModelFacts, limits: Limits, bytes_: Ledger, buffers: Ledger) -> None:
        self._facts, self._limits = facts, limits
        self._bytes, self._buffers = bytes_, buffers
        self._held: dict[int, Demand] = {}
        self._pools = PoolRows({}, {})
        self.begin()

    def __len__(self) -> int:
        """Slots that are taken."""
        return len(self._held)

    @property
    def demands(self) -> Iterable[Demand]:
        """Those of all slots."""
        return self._held.values()

    def begin(self) -> None:
        """A new plan finds what the last one left."""
        self._found, self._pools_found = dict(self._held), self._pools.copy()
        self._left: list[int] = []
        self._changes: dict[int, Change] = {}
        self.packed = False
        moved = self._facts.moved_bytes(self._pools.bytes(False), self._pools.bytes(True))
        self.found_bytes = self._bytes.held("live") + moved  # that lie there until it is packed

    def missing(self, id: int, demand: Demand, sealed: bool = False) -> int:
        """Bytes that a slot takes beyond what is held, with this demand."""
        held, pools = self._played({**self._changes, id: Change(demand, sealed)})
        taken = self._bytes.held("live") + self._bytes.held("workspace")
        return sum(self._weights(held, pools)) - taken

    def set(self, id: int, demand: Demand, sealed: bool = False) -> None:
        """A slot is admitted, or has another demand from this plan on. Raises OutOfMemory."""
        if id not in self._held:
            self._buffers.reserve("live", self._facts.live_buffers)
        self._changes[id] = Change(demand, sealed)
        self._follow()

    def leave(self, id: int) -> None:
        """The plan releases a slot that it found."""
        assert id in self._found, f"slot of {id} came with this plan"
        self._changes.pop(id, None)
        self._left.append(id)
        self._buffers.give_back("live", self._facts.live_buffers)
        self._follow()

    @property
    def grown(self) -> list[int]:
        """Slots that the plan found and that have more room, in the order in which they got it."""
        return [
            id for id, change in self._changes.items() if id in self._found and not change.sealed
        ]

    @property
    def holed(self) -> bool:
        """Whether `pack` would give bytes back."""
        return self._pools_after_leaving().holed

    @property
    def many_holes(self) -> bool:
        """Whether it is worth it though nobody wants them."""
        return self._pools_after_leaving().many_holes

    def pack(self) -> None:
        """The plan closes the holes that it found, and those of the slots that it releases."""
        self.packed = True
        self._follow()

    def lose(self) -> None:
        """The device has dropped all slots, and their pools."""
        self._buffers.give_back("live", self._buffers.held("live"))
        self._held, self._pools = {}, PoolRows({}, {})
        self.begin()
        self._follow()

    def check(self) -> None:
        """M1."""
        live, workspace = self._weights(self._held, self._pools)
        held = self._bytes.held("live"), self._bytes.held("workspace")
        assert held == (live, workspace), f"M1: {held} held, {live} of slots, {workspace} of steps"
        buffers = self._buffers.held("live")
        wanted = len(self._held) * self._facts.live_buffers
        assert buffers == wanted, f"M1: {buffers} buffers of {len(self._held)} slots"

    def _follow(self) -> None:
        self._held, self._pools = self._played(self._changes)
        live, workspace = self._weights(self._held, self._pools)
        more = live - self._bytes.held("live")
        if more < 0:
            self._bytes.adjust("live", more)  # first: the workspace may take it
        self._bytes.adjust("workspace", workspace - self._bytes.held("workspace"))
        if more > 0:
            self._bytes.adjust("live", more)

    def _pools_after_leaving(self) -> PoolRows:
        pools = self._pools_found.copy()
        for id in self._left:
            for row in self._rows(self._found[id]):
                pools.free(row)
        if self.packed:
            pools.pack()
        return pools

    def _played(self, changes: dict[int, Change]) -> tuple[dict[int, Demand], PoolRows]:
        pools = self._pools_after_leaving()
        held = {id: demand for id, demand in self._found.items() if id not in self._left}
        for id, change in changes.items():
            self._play(pools, held.get(id), change)
            held[id] = change.demand
        return held, pools

    def _play(self, pools: PoolRows, old: Demand | None, change: Change) -> None:
        row, ring = self._rows(change.demand)
        if old is None:
            pools.take(ring)
            pools.take(row)
            return
        was, _ = self._rows(old)
        if change.sealed:
            pools.free(was)
            pools.take(row)
        elif was != row:
            pools.take(row)
            pools.free(was)

    def _rows(self, demand: Demand) -> tuple[RowClass, RowClass]:
        row = RowClass(False, self._facts.row_bytes(demand.row_tokens))
        return row, RowClass(True, self._facts.ring_bytes)

    def _weights(self, held: dict[int, Demand], pools: PoolRows) -> tuple[int, int]:
        """Live K/V, and the workspace."""
        rows, rings = pools.bytes(False), pools.bytes(True)
        live = rows + rings + len(held) * self._facts.slot_bytes
        moved = self._facts.moved_bytes(rows, rings)
        return live, workspace_bytes(self._facts, self._limits, list(held.values()), moved)

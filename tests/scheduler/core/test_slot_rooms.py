"""What slots are charged is what the device's pools weigh, whatever plans do to them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sapwood.cache.arrays.placement import Placement
from sapwood.cache.geometry import row_tokens
from sapwood.cache.prefix.ledger import Ledger, OutOfMemory
from sapwood.scheduler.core.demand import Demand
from sapwood.scheduler.core.slot_rooms import SlotRooms
from sapwood.scheduler.limits import Limits
from tests.scheduler.fake_device import toy_facts

FACTS = replace(
    toy_facts(),
    tail_bytes=7,
    live_buffers=4,
    reuse_bytes=3,
    buffers_max=1000,
    full_layers=4,
    sliding_layers=4,
)
LIMITS = Limits()


def rooms(budget_bytes: int = 10**7) -> tuple[SlotRooms, Ledger, Ledger]:
    bytes_, buffers = Ledger(budget_bytes, 0), Ledger(1000, 0)
    return SlotRooms(FACTS, LIMITS, bytes_, buffers), bytes_, buffers


class Plans(RuleBasedStateMachine):
    """Who leaves is decided at any time before somebody comes; the device has its own order."""

    def __init__(self) -> None:
        super().__init__()
        self.rooms, self.bytes, self.buffers = rooms()
        self.rows = Placement(partial(row_tokens, tokens_min=FACTS.row_tokens_min))
        self.rings = Placement(lambda _: 1)
        self.demands: dict[int, Demand] = {}
        self.ids = 0
        self._begin()

    def _begin(self) -> None:
        self.rooms.begin()
        self.left: list[int] = []
        self.grown: dict[int, Demand] = {}
        self.came: dict[int, Demand] = {}
        self.sealed: dict[int, Demand] = {}
        self.packed = False

    @property
    def old(self) -> list[int]:
        return [id for id in self.demands if id not in self.left and id not in self.sealed]

    @precondition(lambda self: not self.sealed)
    @rule(tokens=st.integers(1, 200), base=st.integers(0, 100))
    def admit(self, tokens: int, base: int) -> None:
        self.ids += 1
        self._set(self.ids, Demand(base + tokens, 0, base), self.came)

    @precondition(lambda self: self.came)
    @rule(data=st.data(), tokens=st.integers(1, 200))
    def think_again(self, data: st.DataObject, tokens: int) -> None:
        self._set(data.draw(st.sampled_from(list(self.came))), Demand(tokens), self.came)

    @precondition(lambda self: self.old and not self.came and not self.sealed)
    @rule(data=st.data(), more=st.integers(1, 100))
    def grow(self, data: st.DataObject, more: int) -> None:
        id = data.draw(st.sampled_from(self.old))
        demand = self.grown.get(id, self.demands[id])
        self._set(id, demand._replace(tokens=demand.tokens + more), self.grown)

    @precondition(lambda self: self.old)
    @rule(data=st.data(), room=st.integers(1, 40))
    def seal(self, data: st.DataObject, room: int) -> None:
        id = data.draw(st.sampled_from([id for id in self.old if id not in self.grown] or [0]))
        if id:
            base = self.demands[id].tokens
            self.sealed[id] = Demand(base + room, 0, base)
            self.rooms.set(id, self.sealed[id], sealed=True)

    @precondition(lambda self: self.old and not self.came)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(self.old))
        self.grown.pop(id, None)
        self.left.append(id)
        self.rooms.leave(id)

    @rule()
    def pack(self) -> None:
        self.packed = True
        self.rooms.pack()

    @rule()
    def carry_out(self) -> None:
        """The device's turn: its pools weigh what was charged."""
        for id in self.left:
            self.rows.free(id)
            self.rings.free(id)
            del self.demands[id]
        if self.packed:
            self.rows.pack()
            self.rings.pack()
        self.rows.reserve((id, demand.tokens) for id, demand in self.grown.items())
        for id, demand in self.came.items():
            self.rows.begin_at(id, demand.base)
            self.rows.reserve([(id, demand.tokens)])
            self.rings.reserve([(id, 1)])
        for id, demand in self.sealed.items():
            self.rows.free(id)
            self.rows.begin_at(id, demand.base)
            self.rows.reserve([(id, demand.tokens)])
        self.demands |= self.grown | self.came | self.sealed
        rows = {place.capacity for place in self.rows.places.values()}
        full = sum(self.rows.rows(capacity) * capacity for capacity in rows)
        live = full * FACTS.full_bytes_per_token + self.rings.rows(1) * FACTS.ring_bytes
        live += len(self.demands) * (7 + 4 * 3)
        assert self.bytes.held("live") == live
        assert self.buffers.held("live") == 4 * len(self.demands)
        self._begin()

    @invariant()
    def holds(self) -> None:
        self.rooms.check()

    def _set(self, id: int, demand: Demand, into: dict[int, Demand]) -> None:
        held = self.bytes.held("live") + self.bytes.held("workspace")
        missing = self.rooms.missing(id, demand)
        self.rooms.set(id, demand)
        into[id] = demand
        assert self.bytes.held("live") + self.bytes.held("workspace") == held + missing


TestPlans = Plans.TestCase


def test_a_hole_is_paid_for_until_it_is_taken_or_closed() -> None:
    made, ledger, _ = rooms()
    for id in (1, 2, 3):
        made.set(id, Demand(20))
    made.begin()
    full = ledger.held("live")
    made.leave(1)
    assert made.holed and ledger.held("live") == full - FACTS.slot_bytes
    made.set(4, Demand(20))
    assert ledger.held("live") == full, "the newcomer lies in it"
    made.begin()
    made.leave(2)
    made.pack()
    assert not made.holed
    assert ledger.held("live") == 2 * FACTS.live_bytes(20)
    made.check()


def test_a_slot_that_leaves_takes_back_that_it_grew() -> None:
    made, ledger, _ = rooms()
    made.set(1, Demand(20))
    made.set(2, Demand(20))
    made.begin()
    made.set(2, Demand(60))
    made.leave(2)
    made.pack()
    assert ledger.held("live") == FACTS.live_bytes(20)


def test_many_holes_are_worth_closing_and_one_is_not() -> None:
    made, _, _ = rooms()
    for id in range(6):
        made.set(id, Demand(20))
    for id, many in ((0, False), (1, True)):
        made.begin()
        made.leave(id)
        made.begin()
        assert made.many_holes == many


def test_what_does_not_fit_is_refused_and_asking_changes_nothing() -> None:
    made, ledger, _ = rooms(FACTS.live_bytes(32) + 600)
    assert made.missing(1, Demand(32)) > 0
    assert ledger.held("live") == 0
    with pytest.raises(OutOfMemory):
        made.set(1, Demand(2000))

"""A simulator that finds nothing proves nothing: with one safeguard off it must fail.

Each within 200 seeds, and by the invariant that the safeguard is there for.
"""

from __future__ import annotations

import re
from collections import abc
from collections.abc import Callable
from typing import Any

import pytest

from sapwood.cache.prefix.ledger import Ledger
from sapwood.cache.prefix.node import Room
from sapwood.cache.prefix.snapshot import Payload
from sapwood.scheduler.core.memory import DeviceMemory
from sapwood.scheduler.core.planner import Planner
from sapwood.scheduler.core.roster import Roster
from sapwood.scheduler.core.sequence import Sequence
from sapwood.scheduler.core.slot_rooms import PoolRows, RowClass
from sapwood.scheduler.model_facts import ModelFacts
from sapwood.scheduler.policy.depth import DepthPolicy, Row
from tests.sim.draw import scenario
from tests.sim.play import play

SEEDS_MAX = 200
CACHE, CORE = "sapwood.cache.prefix", "sapwood.scheduler.core"


def no_leases(patch: pytest.MonkeyPatch) -> None:
    """Nobody counts who lives on a node; nor does the tree's audit, which would see it first."""
    patch.setattr(f"{CACHE}.leases._count", lambda *_: None)
    patch.setattr(f"{CACHE}.describe._check_leases", lambda _: None)


def no_queue_bound(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(f"{CORE}.waiting.Waiting.full", False)


def no_account_of_rows(patch: pytest.MonkeyPatch) -> None:
    """Every row is reserved as if it were the smallest."""
    right = ModelFacts.row_bytes
    patch.setattr(ModelFacts, "row_bytes", lambda self, _: right(self, 1))


def no_account_of_holes(patch: pytest.MonkeyPatch) -> None:
    """A row that a slot leaves is given back at once."""
    right = PoolRows.free

    def free(self: PoolRows, row: RowClass) -> None:
        right(self, row)
        self.pack()

    patch.setattr(PoolRows, "free", free)


def no_growing(patch: pytest.MonkeyPatch) -> None:
    """A slot keeps the room that it came with."""
    patch.setattr(f"{CORE}.memory.DeviceMemory.grow", lambda *_: True)


def no_care_for_the_oldest(patch: pytest.MonkeyPatch) -> None:
    """Whoever came first goes first."""

    def oldest(self: Planner) -> Sequence | None:
        live = sorted(self._roster.live.values(), key=lambda sequence: sequence.rank)
        return live[0] if len(live) > 1 else None

    patch.setattr(Planner, "_least_claim", oldest)


def no_bound_of_parks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(f"{CORE}.waiting.Waiting._may_come", lambda *_: True)
    right = DeviceMemory._tokens

    def tokens(self: DeviceMemory, sequence: Sequence) -> int:
        parks, sequence.parks = sequence.parks, 0
        found = right(self, sequence)
        sequence.parks = parks
        return found

    patch.setattr(DeviceMemory, "_tokens", tokens)


def no_room_beside_slots(patch: pytest.MonkeyPatch) -> None:
    """A capture out of a slot may lie where the slot still is."""
    patch.setattr(DeviceMemory, "_freed_later", 0)


def no_slot_release(patch: pytest.MonkeyPatch) -> None:
    def leave(self: Roster, captured: list[Any]) -> None:
        self.leaving.clear()
        self.storing.extend(captured)

    patch.setattr(Roster, "leave", leave)


def no_waiting_for_the_same_prefix(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(f"{CORE}.waiting.Waiting._awaits", lambda *_: False)


def no_memory_limit(patch: pytest.MonkeyPatch) -> None:
    """Whoever can never fit is let in."""
    patch.setattr(f"{CORE}.memory.DeviceMemory.servable", lambda *_: True)


def no_care_for_windows(patch: pytest.MonkeyPatch) -> None:
    """A path counts as restorable although its sliding K/V was thinned."""
    patch.setattr(f"{CACHE}.tree.longest_restorable", lambda node, t, window: t)


def no_closing_of_duplicates(patch: pytest.MonkeyPatch) -> None:
    """What another has stored already is neither kept nor freed."""
    patch.setattr(f"{CACHE}.tree.renew", lambda *_: None)


def no_repoints(patch: pytest.MonkeyPatch) -> None:
    """Nobody is told that the tree cut or joined what a slot refers to."""
    patch.setattr(f"{CORE}.planner.Planner._repoints", lambda *_: ())


def no_keeping_of_windows(patch: pytest.MonkeyPatch) -> None:
    """What a plan is about to restore may give way to what it admits next."""
    patch.setattr(f"{CACHE}.tree.Tree.keep", lambda *_: None)


def no_share_of_prefill(patch: pytest.MonkeyPatch) -> None:
    """Decode rows may take all of a step."""
    patch.setattr(f"{CORE}.planner.prefill_budget", lambda rows, most: max(0, most - rows))


def no_parking(patch: pytest.MonkeyPatch) -> None:
    """Everybody drafts, whatever comes of it."""

    def choose(_: object, rows: abc.Sequence[Row], __: int) -> list[int]:
        return [row.depth_max if row.pinned is None else row.pinned for row in rows]

    patch.setattr(DepthPolicy, "choose", choose)


def no_room_for_cuts(patch: pytest.MonkeyPatch) -> None:
    """A capture is inserted as if nothing were cut for it."""

    def stored(_: object, __: object, ___: object, payload: Payload) -> Room:
        return Room(payload.full_bytes + payload.sliding_bytes)

    patch.setattr(f"{CORE}.snapshot_room.SnapshotRoom._stored_room", stored)


def no_bound_of_buffers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(f"{CORE}.memory.Ledger", lambda _, weights: Ledger(1 << 62, weights))


def no_end_of_lost_slots(patch: pytest.MonkeyPatch) -> None:
    """What slots took stays reserved when the device has dropped them."""
    patch.setattr(f"{CORE}.slot_rooms.SlotRooms.lose", lambda _: None)


@pytest.mark.parametrize(
    ("off", "found"),
    [
        (no_leases, "closed or taken already|KeyError|is in use"),
        (no_queue_bound, "wait, [0-9]+ may"),
        (no_account_of_rows, "M1"),
        (no_account_of_holes, "M1: slots of"),
        (no_growing, "past the room"),
        (no_care_for_the_oldest, "L7"),
        (no_bound_of_parks, "L7"),
        (no_room_beside_slots, "M1: [0-9]+ bytes with a capture"),
        (no_slot_release, "L1"),
        (no_waiting_for_the_same_prefix, "computed twice"),
        (no_memory_limit, "L5|they wait for nothing"),
        (no_care_for_windows, "T2|T9"),
        (no_closing_of_duplicates, "T7"),
        (no_repoints, "stale"),
        (no_keeping_of_windows, "T9"),
        (no_share_of_prefill, "L2|L3|L6"),
        (no_parking, "S8"),
        (no_room_for_cuts, "OutOfMemory"),
        (no_bound_of_buffers, "M1: [0-9]+ buffers"),
        (no_end_of_lost_slots, "slots reserved"),
    ],
)
def test_without_a_safeguard_it_fails(
    off: Callable[[pytest.MonkeyPatch], None], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    off(monkeypatch)
    for seed in range(SEEDS_MAX):
        _, violation = play(scenario(seed))
        if violation is not None:
            assert re.search(found, violation.message), violation
            return
    raise AssertionError(f"{SEEDS_MAX} seeds and nothing was noticed")

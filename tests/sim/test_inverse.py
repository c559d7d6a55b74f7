"""A simulator that finds nothing proves nothing: with one safeguard off it must fail.

Each within 200 seeds, and by the invariant that the safeguard is there for. A seed that is known
to fail is played first.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Callable
from typing import Any

import pytest

from sapwood.cache.prefix.catalogue import Catalogue, DiskFile
from sapwood.cache.prefix.ledger import Ledger
from sapwood.cache.prefix.node import Room
from sapwood.cache.prefix.snapshot import Payload
from sapwood.scheduler.core.memory import DeviceMemory
from sapwood.scheduler.core.planner import Planner
from sapwood.scheduler.core.roster import Roster
from sapwood.scheduler.core.sequence import Sequence
from sapwood.scheduler.core.slicing import Slicing
from sapwood.scheduler.core.slot_rooms import PoolRows, RowClass
from sapwood.scheduler.core.waiting import Waiting
from sapwood.scheduler.model_facts import ModelFacts
from sapwood.scheduler.policy.depth import DepthPolicy, Row
from sapwood.scheduler.policy.slice_cost import SliceCost
from tests.scheduler.disk_house import FakeDisk
from tests.sim.inverse import fails_on, fails_without
from tests.sim.story import Ask, BreakDisk, Config, Kill, Scenario, Slow, Stall, Wipe

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
        forced, sequence.forced = sequence.forced, 0
        found = right(self, sequence)
        sequence.forced = forced
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


def no_waiting_for_the_leader(patch: pytest.MonkeyPatch) -> None:
    """A fork stands in its line from the first."""

    def add(self: Waiting, sequence: Sequence) -> None:
        right(self, sequence)
        self.release(sequence.request.fork_of or 0)

    right = Waiting.add
    patch.setattr(Waiting, "add", add)


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
    right = Slicing.shares

    def shares(self: Slicing, *parts: Any) -> list[tuple[Sequence, int]]:
        _, _, decodes, *_ = parts
        return [] if decodes else right(self, *parts)

    patch.setattr(Slicing, "shares", shares)


def no_time_slices(patch: pytest.MonkeyPatch) -> None:
    """Prompts have what decode rows leave of a step's tokens, whatever it takes."""
    patch.setattr(SliceCost, "tokens", lambda *_: 1 << 20)


def no_parking(patch: pytest.MonkeyPatch) -> None:
    """Everybody drafts, whatever comes of it."""

    def choose(_: object, rows: abc.Sequence[Row], **__: object) -> list[int]:
        return [row.depth_max if row.pinned is None else row.pinned for row in rows]

    patch.setattr(DepthPolicy, "choose", choose)


def no_fair_shares(patch: pytest.MonkeyPatch) -> None:
    """Who opens more streams gets more."""

    def by_streams(demands: list[float], _: list[float], room: float) -> list[float]:
        return [demand * min(1.0, room / sum(demands)) for demand in demands]

    patch.setattr(f"{CORE}.fairness.max_min", by_streams)


def no_yielding(patch: pytest.MonkeyPatch) -> None:
    """A slot is one's until its end."""
    patch.setattr(f"{CORE}.fairness.Fairness.victim", lambda *_: None)


def no_bound_of_passing(patch: pytest.MonkeyPatch) -> None:
    """Who is less urgent goes when nobody else is there."""
    patch.setattr(f"{CORE}.line.Line.gives_way_to", lambda *_: False)


def no_room_for_cuts(patch: pytest.MonkeyPatch) -> None:
    """A capture is inserted as if nothing were cut for it."""

    def stored(_: object, payload: Payload, __: int) -> Room:
        return Room(payload.full_bytes + payload.sliding_bytes)

    patch.setattr(f"{CORE}.snapshot_room.SnapshotRoom._stored_room", stored)


def no_care_for_pins(patch: pytest.MonkeyPatch) -> None:
    """What pins keep may be thinned like any other; nor does the tree's audit look."""
    patch.setattr(f"{CACHE}.leases._count_pin", lambda *_: None)
    patch.setattr(f"{CACHE}.describe._check_leases", lambda _: None)
    patch.setattr(f"{CORE}.pins.Pins.check", lambda _: None)


def no_bound_of_pins(patch: pytest.MonkeyPatch) -> None:
    """Pins may keep all that there is."""
    patch.setattr(f"{CORE}.pins.Pins._leaves_room", lambda *_: True)


def no_end_of_pins(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(f"{CORE}.pins.Pins.expire", lambda *_: None)


def no_burying(patch: pytest.MonkeyPatch) -> None:
    """What was cleared while somebody held it stays behind him."""
    patch.setattr(f"{CACHE}.tree.bury", lambda lease, *_: lease.node)


def no_bound_of_buffers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(f"{CORE}.memory.Ledger", lambda _, weights: Ledger(1 << 62, weights))


def no_end_of_lost_slots(patch: pytest.MonkeyPatch) -> None:
    """What slots took stays reserved when the device has dropped them."""
    patch.setattr(f"{CORE}.slot_rooms.SlotRooms.lose", lambda _: None)


@pytest.mark.parametrize(
    ("off", "found", "seed"),
    [
        (no_leases, "closed or taken already|KeyError|is in use|counted Weight", 0),
        (no_queue_bound, "wait, [0-9]+ may", 0),
        (no_account_of_rows, "M1", 0),
        (no_account_of_holes, "M1: slots of", 1),
        (no_growing, "past the room", 0),
        (no_care_for_the_oldest, "L7", 9),
        pytest.param(no_bound_of_parks, "L7", 88, marks=pytest.mark.long),
        (no_room_beside_slots, "M1: [0-9]+ bytes with a capture", 3),
        (no_slot_release, "L1", 0),
        (no_waiting_for_the_same_prefix, "computed twice", 4),
        pytest.param(no_waiting_for_the_leader, "L9", 7, marks=pytest.mark.long),
        (no_memory_limit, "L5|they wait for nothing", 4),
        (no_care_for_windows, "T2|T9", 3),
        (no_closing_of_duplicates, "T7", 1),
        (no_repoints, "stale", 2),
        (no_keeping_of_windows, "T9", 17),
        (no_share_of_prefill, "L2|L3|L6", 1),
        pytest.param(no_time_slices, "L3: steps with prompts", 17, marks=pytest.mark.long),
        (no_parking, "S8", 33),
        (no_bound_of_passing, "L4", 7),
        pytest.param(no_room_for_cuts, "OutOfMemory", 66, marks=pytest.mark.long),  # a rare seed
        pytest.param(no_bound_of_buffers, "M1: [0-9]+ buffers", 37, marks=pytest.mark.long),
        (no_end_of_lost_slots, "slots reserved", 2),
        (no_care_for_pins, "T13", 6),
        (no_bound_of_pins, "T13|L5|L7", 14),
        (no_end_of_pins, "T13", 6),
        (no_burying, "T14", 2),
    ],
)
def test_without_a_safeguard_it_fails(
    off: Callable[[pytest.MonkeyPatch], None],
    found: str,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fails_without(off, found, seed, monkeypatch)


LONG: dict[str, Any] = {"max_tokens": 160, "ignore_eos": True, "depth": 0}
MANY = [Ask(0, n, (("pool", n, 9),), **LONG) for n in range(20)]
FEW = [Ask(12, 20 + n, (("pool", 20 + n, 9),), principal=1, **LONG) for n in range(3)]
CONTENDED = Scenario(Config(slots_max=4, share_tokens_min=32), (*MANY, *FEW))


def no_verification(patch: pytest.MonkeyPatch) -> None:
    """What was read is used, damaged or not."""
    patch.setattr(FakeDisk, "verifies", False)


def no_erasing(patch: pytest.MonkeyPatch) -> None:
    """What is cleared stays on disk."""
    patch.setattr(f"{CORE}.disk_tier.DiskTier.clear", lambda self, order, cleared: [cleared])


def no_end_of_reading(patch: pytest.MonkeyPatch) -> None:
    """What is being read comes, whatever was cleared meanwhile."""
    patch.setattr(f"{CORE}.disk_tier.DiskTier.stop_reading", lambda *_: None)


def no_bound_of_writes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(f"{CORE}.page_outs.WriteBudget.left", lambda *_: 1 << 60)


def no_bound_of_the_disk(patch: pytest.MonkeyPatch) -> None:
    right = Catalogue.begin

    def begin(self: Catalogue, file: DiskFile, _: object) -> tuple[bool, list[DiskFile]]:
        self.bytes_max = 1 << 60
        return right(self, file)

    patch.setattr(Catalogue, "begin", begin)


PAGED = (("pool", 0, 70),)
ON_DISK = Config(disk_bytes=10**6)
KILLED = Ask(0, 1, PAGED), Kill(60)
TORN = Scenario(ON_DISK, (*KILLED, BreakDisk(61, 0, torn=True), Ask(61, 2, PAGED), Slow(90, 1, 1)))
CLEARED = Scenario(ON_DISK, (*KILLED, Stall(61, 9), Ask(63, 2, PAGED), Wipe(64)))
SMALL = Config(disk_bytes=4000, disk_writes_bytes=6000)
FILLED = Scenario(SMALL, tuple(Ask(40 * n, n, (("pool", n, 70),)) for n in range(4)))


@pytest.mark.parametrize(
    ("off", "played", "found"),
    [
        (no_verification, TORN, "S4"),
        (no_erasing, CLEARED, "T14"),
        (no_end_of_reading, CLEARED, "T14"),
        (no_bound_of_writes, FILLED, "T15: .* bytes (written|more than a day's)"),
        (no_bound_of_the_disk, FILLED, "T15: [0-9]+ bytes, "),
    ],
)
def test_without_a_safeguard_the_disk_fails(
    off: Callable[[pytest.MonkeyPatch], None],
    played: Scenario,
    found: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fails_on(played, off, found, monkeypatch)


@pytest.mark.parametrize("off", [no_fair_shares, no_yielding])
def test_l4_without_fairness_who_comes_second_is_without_its_slots(
    off: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long replies of one in all slots: seeds have few of them."""
    fails_on(CONTENDED, off, "L4", monkeypatch)

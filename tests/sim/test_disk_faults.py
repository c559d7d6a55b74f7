"""A disk whose every operation fails once, in turn, and a clock that jumps; and the inverses.

- Of a block: the copy out of the device, the write beside its place, the rename, the line of the
  journal. Of what comes back: the read, and the copy into the device. Of what goes: the removal.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sapwood.scheduler.core.disk_tier import DiskTier
from sapwood.scheduler.core.page_outs import DAY_S, WriteBudget
from sapwood.scheduler.disk import Erase
from tests.quick import few_quick
from tests.scheduler.disk_house import FakeDisk
from tests.sim.inverse import fails_on
from tests.sim.play import play
from tests.sim.story import (
    Action,
    Ask,
    Break,
    BreakDisk,
    Config,
    Forget,
    GiveUp,
    Jump,
    Keep,
    Kill,
    Open,
    Scenario,
    Wipe,
)

PROMPT = (("pool", 0, 70),)
ON_DISK = Config(disk_bytes=10**6)
SHORT, TALK = (("pool", 0, 34),), (("pool", 1, 20),)
DAY = (
    *(Open(0, 0), Ask(0, 1, SHORT), Ask(0, 2, TALK, session=0)),
    *(Ask(15, 3, (("pool", 0, 20), ("pool", 2, 12))), Kill(35)),
    *(Open(36, 0), Ask(36, 4, SHORT), Ask(36, 5, TALK, session=0)),
    *(Forget(46, 0), Wipe(50, (("pool", 0, 20),)), Ask(51, 6, SHORT), Wipe(60), Ask(61, 7, SHORT)),
)


def every(failing: Callable[[int], Action], count: int = 400) -> set[str]:
    """The kinds of faults that came of it, over all operations until there is none left to fail."""
    seen: set[str] = set()
    for after in range(count):
        actions = sorted((failing(after), *DAY), key=lambda action: action.at)
        found, violation = play(Scenario(ON_DISK, tuple(actions)))
        assert violation is None, f"{after}: {violation}"
        kinds = {kind for pair in found.pairs for kind in pair}
        if not any(kind.startswith(("disk ", "damaged", "allocation")) for kind in kinds):
            return seen
        seen |= kinds
    raise AssertionError("there is always one more")


@pytest.mark.parametrize("at", few_quick([0, 36], 36))
def test_any_operation_of_the_disk_may_fail(at: int) -> None:
    """T14, T15, S4, L2: of a first life, and of the next, which finds what that one wrote."""
    seen = every(lambda after: BreakDisk(at, after, stuck=True))
    assert {"disk write", "disk rename", "disk line"} <= seen
    assert at == 0 or {"disk read", "disk unlink", "damaged"} <= seen


@pytest.mark.long
@pytest.mark.parametrize("at", [0, 36])
def test_the_device_may_have_no_memory_for_what_comes_and_goes(at: int) -> None:
    """M2: the daemon dies of it, and the next one finds the disk in order."""
    seen = every(lambda after: Break(at, after))
    assert {"disk page-out", *(["disk page-in"] if at else [])} <= seen


def no_look_aside(patch: pytest.MonkeyPatch) -> None:
    """What lies there and nobody knows of stays."""
    patch.setattr(FakeDisk, "looks_aside", False)


def no_asking_for_nothing(patch: pytest.MonkeyPatch) -> None:
    """Where the core knows of no file, there is none."""

    def take_orders(self: DiskTier) -> tuple[object, ...]:
        return tuple(
            Erase(each.files, each.id) if isinstance(each, Erase) and each.files == () else each
            for each in right(self)
        )

    right = DiskTier.take_orders
    patch.setattr(DiskTier, "take_orders", take_orders)


def no_bound_of_a_day(patch: pytest.MonkeyPatch) -> None:
    """What was not written in a week may be written at once."""

    def left(self: WriteBudget, now: float) -> int:
        self._left += 0.0 if self._at is None else (now - self._at) * self.a_day / DAY_S
        self._at = now
        return int(self._left)

    patch.setattr(WriteBudget, "left", left)


def no_end_of_pins(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("sapwood.scheduler.core.pins.Pins.expire", lambda *_: None)


def unlisted(after: int) -> Scenario:
    """A block's line is lost; then all that begins like it is to go."""
    return Scenario(ON_DISK, (BreakDisk(0, after), Ask(0, 1, PROMPT), Wipe(60, (("pool", 0, 8),))))


LINE = 2  # the first block's last operation
TORN = Scenario(
    Config(disk_bytes=10**6, window=0, sliding_bytes=0),  # so that its block is one file
    (
        *(Ask(0, 1, (("pool", 0, 12),), 1), Kill(60), BreakDisk(61, 0, torn=True)),
        *(Ask(61, 2, (("pool", 0, 12),), 1), GiveUp(62, 2), Wipe(64, (("pool", 0, 8),))),
    ),
)
SLEPT = Scenario(
    Config(disk_bytes=10**6, disk_writes_bytes=900),
    (Ask(0, 1, PROMPT), Jump(30, 5 * DAY_S), *(Ask(31 + n, 2 + n, PROMPT) for n in range(3))),
)
PINNED = Scenario(Config(), (Keep(0, -1, PROMPT, ttl_s=30.0), Jump(30, 31.0), Ask(31, 1, PROMPT)))


@pytest.mark.parametrize(
    ("off", "played", "found"),
    [
        (no_look_aside, unlisted(LINE), "T14"),
        (no_look_aside, TORN, "T14"),
        (no_asking_for_nothing, TORN, "T14"),
        (no_bound_of_a_day, SLEPT, "T15: .* more than a day's at once"),
        (no_end_of_pins, PINNED, "T13"),
    ],
)
def test_without_a_safeguard_it_fails(
    off: Callable[[pytest.MonkeyPatch], None],
    played: Scenario,
    found: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fails_on(played, off, found, monkeypatch)

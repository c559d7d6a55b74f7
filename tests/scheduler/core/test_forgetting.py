"""What sessions and principals forget is on no disk once they are told so (T14)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from typing import Any

import pytest

from sapwood.cache.prefix.radix import pack
from sapwood.scheduler.core.disk_tier import DiskTier
from sapwood.scheduler.core.forgetting import Forgetting
from sapwood.scheduler.disk import ForgottenPath
from sapwood.scheduler.events import Cleared, Forget
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.reasons import Reason
from sapwood.scheduler.session_events import SessionTold
from tests.scheduler.disk_house import BLOCK, NAMES, DiskHouse, folder
from tests.scheduler.house import Stream, finished, prompt
from tests.scheduler.session_house import SessionHouse, key, reason, tokens, told

LIMITS = Limits(slots_max=4, prefill_tokens_max=32, share_tokens_min=8)
LONG: dict[str, Any] = {"ignore_eos": True}
Path = tuple[int, ...]


class DiskSessionHouse(SessionHouse, DiskHouse):
    """Sessions over a disk."""

    def __init__(self) -> None:
        super().__init__(limits=LIMITS, folder=folder())

    def forget(self, principal: str, root: bytes | None) -> Cleared:
        answer = self.order(Forget(next(self.ids), principal, root))
        assert isinstance(answer, Cleared)
        return answer

    def with_turns(self, name: str, *turns: Path) -> Path:
        told(self.create(name))
        for each in turns:
            self.speak(name, each, **LONG)
            self.run()
        return tokens(self, name)

    def left_of(self, paths: Iterable[Path], root: bytes = b"root") -> set[Path]:
        """Blocks that lie on disk of these, by the tokens up to their ends."""
        names = {name for name, _ in self.disk.files}
        return {
            path[: block.end]
            for path in paths
            for block in NAMES.blocks(root, pack(path), len(path))
            if block.name in names
        }


@pytest.fixture
def house() -> DiskSessionHouse:
    return DiskSessionHouse()


def test_a_deleted_session_leaves_no_file(house: DiskSessionHouse) -> None:
    held = house.with_turns("a", prompt(40), prompt(20, seed=1))
    assert len(house.left_of([held])) == (len(held) - 1) // BLOCK
    told(house.delete("a"))
    assert not house.disk.files
    house.run()
    assert not house.disk.files, "nor does one come later"
    house.close()


def test_what_is_still_to_be_stored_of_it_is_not_written(house: DiskSessionHouse) -> None:
    """Deleted while its reply runs: the slot is captured afterwards."""
    told(house.create("a"))
    stream = house.speak("a", prompt(40), 30, **LONG)
    while len(stream.tokens) < 20:
        house.step_alone()
    told(house.delete("a"))
    house.run()
    assert house.tree.match(b"root", pack(prompt(40))).tokens == 39, "memory has it still"
    assert not house.disk.files
    house.close()


def test_what_another_session_holds_stays(house: DiskSessionHouse) -> None:
    held = house.with_turns("a", prompt(40))
    told(house.fork("a", "b", at=24))
    told(house.delete("a"))
    assert house.left_of([held]) == {held[:8], held[:16], held[:24]}
    told(house.delete("b"))
    assert not house.disk.files
    house.close()


def test_what_others_go_on_from_stays(house: DiskSessionHouse) -> None:
    """A prompt outside of sessions has gone on from its first blocks."""
    held = house.with_turns("a", prompt(40))
    other = house.submit((*prompt(40)[:24], *prompt(20, seed=7)))
    house.run()
    told(house.delete("a"))
    assert house.left_of([held]) == {held[:8], held[:16], held[:24]}
    path = (*other.request.prompt, *other.tokens)
    assert len(house.left_of([path])) == (len(path) - 1) // BLOCK
    house.close()


def test_another_tenant_s_files_stay(house: DiskSessionHouse) -> None:
    """T8: of the very same tokens."""
    other = house.submit(prompt(40), root=b"b" * 32)
    house.run()
    theirs = dict(house.disk.files)
    held = house.with_turns("a", prompt(40))
    assert house.left_of([held])
    told(house.delete("a"))
    assert house.disk.files == theirs and finished(other)
    house.close()


def test_a_rollback_takes_what_it_cuts(house: DiskSessionHouse) -> None:
    held = house.with_turns("a", prompt(40), prompt(20, seed=1))
    told(house.rollback("a", 20))
    assert house.left_of([held]) == {held[:8], held[:16]}
    again = house.speak("a", prompt(20, seed=2), **LONG)
    house.run()
    assert finished(again)
    told(house.delete("a"))
    assert not house.disk.files
    house.close()


def test_a_prompt_that_drew_nothing_is_not_kept(house: DiskSessionHouse) -> None:
    """Its session never held it, so no deletion would find it."""
    held = house.with_turns("a", prompt(40))
    files = dict(house.disk.files)
    stream = house.speak("a", prompt(70, seed=3), **LONG)
    for _ in range(2):
        house.step_alone()
    assert not stream.tokens
    house.cancel(stream)
    house.run()
    assert house.disk.files == files and tokens(house, "a") == held
    house.close()


def test_who_deletes_hears_that_files_are_left(house: DiskSessionHouse) -> None:
    house.with_turns("a", prompt(40))
    house.disk.erases_fail = True
    house.disk.fails_at = lambda at: True
    assert reason(house.delete("a")) is Reason.UNSUPPORTED
    assert house.held("a") is None, "and the session is gone all the same"
    house.close()


def test_a_principal_that_is_forgotten_leaves_nothing(house: DiskSessionHouse) -> None:
    house.with_turns("a", prompt(40))
    pin = house.pin(prompt(30, seed=5), principal="somebody")
    other = house.submit(prompt(40), root=b"b" * 32, principal="else")
    house.run()
    theirs = house.left_of([(*prompt(40), *other.tokens)], b"b" * 32)
    house.forget("somebody", b"root")
    assert house.held("a") is None and not house.unpin(pin)
    assert house.tree.match(b"root", pack(prompt(40))).matched == 0
    assert house.left_of([(*prompt(40), *other.tokens)], b"b" * 32) == theirs
    assert {name for name, _ in house.disk.files} == {
        block.name for path in theirs for block in NAMES.blocks(b"b" * 32, pack(path), len(path))
    }
    house.close()


def test_who_shares_a_root_leaves_what_is_shared(house: DiskSessionHouse) -> None:
    house.with_turns("a", prompt(40))
    files = dict(house.disk.files)
    house.forget("somebody", None)
    assert house.held("a") is None and house.disk.files == files
    house.close()


class Walk:
    """Sessions that are made, used, cut, copied and deleted at random."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.house = DiskSessionHouse()
        self.held: dict[str, set[Path]] = {}  # what each live one ever held
        self.gone: set[Path] = set()
        self.names = itertools.count()
        self.streams: list[Stream] = []

    def step(self) -> None:
        moves = [self.create, self.turn, self.turn, self.turn, self.fork, self.rollback]
        self.draw.choice([*moves, self.delete, self.cancel])()
        self.house.disk.stalled = self.draw.random() < 0.3
        for _ in range(self.draw.randrange(12)):
            self.house.step() if self.house.core.has_work else self.house.idle(0.1)
        for name in self.held:
            self.note(name)

    def any(self) -> str | None:
        return self.draw.choice(sorted(self.held)) if self.held else None

    def note(self, name: str) -> None:
        self.held[name].add(tokens(self.house, name))

    def create(self) -> None:
        if len(self.held) < 4:
            name = f"s{next(self.names)}"
            told(self.house.create(name))
            self.held[name] = set()

    def turn(self) -> None:
        name = self.any()
        if name is None or len(tokens(self.house, name)) > 200:
            return
        held = self.house.core.session(key(name), self.house.now)
        if held is not None and not held.view.busy:
            part = prompt(self.draw.randrange(1, 50), seed=self.draw.randrange(3))
            stream = self.house.speak(name, part, self.draw.randrange(1, 20), **LONG)
            self.streams.append(stream)

    def fork(self) -> None:
        name = self.any()
        if name is not None and len(self.held) < 4:
            made, at = f"s{next(self.names)}", len(tokens(self.house, name))
            told(self.house.fork(name, made, self.draw.randint(0, at)))
            self.held[made] = set()

    def rollback(self) -> None:
        name = self.any()
        if name is not None:
            was = tokens(self.house, name)
            answer = self.house.rollback(name, self.draw.randint(0, len(was)))
            if isinstance(answer, SessionTold):
                self.gone.add(was)
                self.check()

    def delete(self) -> None:
        name = self.any()
        if name is not None:
            self.note(name)
            told(self.house.delete(name))
            self.gone |= self.held.pop(name)
            self.check()

    def cancel(self) -> None:
        live = [stream for stream in self.streams if stream.end is None]
        if live:
            self.house.cancel(self.draw.choice(live))

    def check(self) -> None:
        """T14: what is on disk of what was forgotten a live session holds, or held and may yet."""
        for left in self.house.left_of(self.gone):
            holders = (tokens(self.house, name) for name in self.held)
            running = ((*s.request.prompt, *s.tokens) for s in self.streams if s.end is None)
            paths = [*holders, *running]
            assert any(path[: len(left)] == left for path in paths), f"T14: {left}"


def walked(seed: int, steps: int) -> Walk:
    walk = Walk(seed)
    for _ in range(steps):
        walk.step()
    walk.house.run()
    walk.check()
    for name in list(walk.held):
        told(walk.house.delete(name))
    walk.house.run()
    assert not walk.house.disk.files, "T14: everybody is gone, and not all files"
    walk.house.close()
    return walk


@pytest.mark.parametrize("seed", range(6))
def test_whatever_sessions_do_nothing_of_the_deleted_stays(seed: int) -> None:
    assert walked(seed, 60).gone


@pytest.mark.long
@pytest.mark.timeout(900)
def test_whatever_sessions_do_nothing_of_the_deleted_stays_on_new_ground() -> None:
    for seed in range(100, 500):
        walked(seed, 100)


def no_keeping_off(self: Forgetting, key: object) -> None:
    """What is captured later is written."""


def no_erasing(
    self: DiskTier, path: ForgottenPath, answer: SessionTold | None
) -> list[SessionTold]:
    """Files of a path stay."""
    return [] if answer is None else [answer]


@pytest.mark.parametrize(
    ("where", "without"),
    [(Forgetting, ("_keep_off_disk", no_keeping_off)), (DiskTier, ("forget_path", no_erasing))],
)
def test_without_a_safeguard_something_stays(
    monkeypatch: pytest.MonkeyPatch, where: type, without: tuple[str, object]
) -> None:
    """The walk above finds it."""
    monkeypatch.setattr(where, *without)

    def walk_until_found() -> None:
        for seed in range(20):
            walked(seed, 60)

    with pytest.raises(AssertionError, match="T14"):
        walk_until_found()

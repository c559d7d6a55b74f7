"""Recordings: what a core was told, played again, gives the same plans; and holds no text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import BinaryIO

import pytest

from sapwood.daemon.engine.recording import RecordedCore
from sapwood.daemon.own_files import create_private
from sapwood.scheduler.events import Cleared, Forget, Pinned, Unpinned
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.reasons import Reason
from sapwood.scheduler.sampling import Sampling
from tests.scheduler.core.test_constraints import Breaking
from tests.scheduler.fake_device import toy_facts
from tests.scheduler.house import House, Stream, failed, prompt
from tests.scheduler.session_house import SessionHouse
from tests.sim.replay import Differs, replay


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a recording is to be."""
    return tmp_path / "record"


def recorded(
    path: Path,
    limits: Limits,
    requests: int = 40,
    out: BinaryIO | None = None,
    operated: bool = False,
) -> House:
    """A house under all kinds of load whose core is recorded to `path`, to its very end."""
    house = House(limits=limits, budget_bytes=1700, quality=0.6)
    file = out or create_private(path)
    house.core = RecordedCore(house.core, house.facts, limits, file)  # type: ignore[assignment]
    random = Random(5)
    for number in range(requests):
        house.submit(
            prompt(random.randint(1, 30), number % 3) + prompt(random.randint(1, 20), number),
            random.randint(1, 30),
            sampling=Sampling(random.choice((0.0, 1.0)), noise_key=900_000 + number),
            stop=random.choice(((), ("ab",), ("b the",))),
            stop_token_ids=frozenset({random.randrange(4, 48)}),
            ignore_eos=number % 2 == 0,
            top_logprobs=number % 3,
            prompt_logprobs=number % 4 // 3,
            forks=number % 6 // 5,
            root=b"salt %d" % (number % 2),
            deadline=house.now + 0.1 if number % 7 == 0 else None,
        )
        if operated and number % 9 == 0:
            pin = house.pin(prompt(20, number % 3), 0.5 if number % 2 else None)
        if operated and number % 13 == 12:
            house.clear(prompt(5, number % 3))
            house.clear(root=b"salt 1")
            house.order(Forget(next(house.ids), f"nobody {number}", b"salt 0"))
            house.unpin(pin)
        if number % 5 == 0:
            house.cancel(random.choice(list(house.streams.values())))
        for _ in range(random.randint(0, 12)):
            house.step()
    house.close()
    return house


LIMITS = Limits(
    slots_max=3,
    prefill_tokens_max=24,
    share_tokens_min=4,
    queued_max=5,
    reply_tokens_guess=1,
    draft_depth_max=8,
)


def test_every_plan_is_the_same(file: Path) -> None:
    """L8: stops by text, by ids, by length; cancels, deadlines, evictions; restored prefixes."""
    house = recorded(file, LIMITS)
    reasons = {getattr(stream.end, "reason", None) for stream in house.streams.values()}
    assert len(reasons) > 5, reasons
    stats = house.core.stats()
    assert stats.tree_evictions["evicted"] and stats.parks
    with file.open() as lines:
        assert replay(lines) == len(house.plans) > 100


def test_what_operators_did_is_done_again(file: Path) -> None:
    """L8: pins that are made, unpinned and over while nobody looked; clearings."""
    house = recorded(file, LIMITS, operated=True)
    assert any(isinstance(stream.end, Pinned) for stream in house.streams.values())
    assert {type(answer) for answer in house.answers} == {Cleared, Unpinned}
    assert house.core.stats().tree_evictions["cleared"]
    with file.open() as lines:
        assert replay(lines) == len(house.plans) > 100


def test_what_sessions_went_through_is_done_again(file: Path) -> None:
    """L8: turns, forks, rollbacks, replies that are cut and gone on with, or taken over."""
    house = SessionHouse(limits=LIMITS, budget_bytes=1750, quality=0.6)
    core = RecordedCore(house.core, house.facts, LIMITS, create_private(file))
    house.core = core  # type: ignore[assignment]
    random, turns = Random(5), list[Stream]()
    house.create("session 0")
    for number in range(40):
        name = f"session {random.randrange(4)}"
        house.fork(f"session {random.randrange(4)}", name, random.choice((None, 0, 20)))
        held = house.held(name)
        if held is not None and len(held.tokens) < 60:
            turns.append(house.speak(name, prompt(9, number), 20, stop=("b the",)))
        if number % 5 == 0:
            house.rollback(name, random.randint(0, 40))
            house.delete(f"session {random.randint(1, 3)}")
        for _ in range(random.randint(0, 9)):
            house.step()
        if turns and number % 3 == 0:
            house.cancel(turns[-1])
        if turns and turns[-1].tokens and number % 2 == 0:
            turns[-1] = house.resume(turns[-1])
    house.close()
    assert len(turns) > 10
    assert '"session 0"' not in file.read_text()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    kinds = {line["session"][0] for line in lines if "session" in line}
    assert len(kinds) == 5, kinds
    with file.open() as told:
        assert replay(told) == len(house.plans) > 50


def test_a_plan_that_differs_is_found(file: Path) -> None:
    recorded(file, LIMITS)
    lines = file.read_text().splitlines(keepends=True)
    at = next(n for n, line in enumerate(lines) if '"decoded":[[[' in line)
    lines[at] = lines[at].replace('"decoded":[[[', '"decoded":[[[1,', 1).replace("],0]", "],1]", 1)
    with pytest.raises((Differs, AssertionError)):
        replay(lines)


def test_ids_seeds_roots_and_text_are_not_in_it(file: Path) -> None:
    """Ids are others each time; what else a client chose in words is not there at all."""
    recorded(file, LIMITS, requests=6)
    _, text = file.read_text().split("\n", 1)  # the head names limits
    assert not any(secret in text for secret in ("salt", "90000", "the", "stop"))
    submits = [json.loads(line)["submit"] for line in text.splitlines() if '"submit"' in line]
    assert tuple(submits[0]["prompt"]) != prompt(len(submits[0]["prompt"]))
    again = file.with_name("again")
    recorded(again, LIMITS, requests=6)
    assert submits[0]["prompt"] not in json.loads(again.read_text().splitlines()[1]).values()
    assert (file.stat().st_mode & 0o777) == 0o600


def test_it_grows_to_its_bound_and_is_played_as_far(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    house = recorded(file, Limits(slots_max=3, prefill_tokens_max=24, record_bytes_max=20_000))
    assert file.stat().st_size <= 20_000
    assert [record.message for record in caplog.records].count(
        "the recording is full: what follows is not recorded"
    ) == 1
    with file.open() as lines:
        assert 10 < replay(lines) < len(house.plans)
    cut = file.read_text()[:-30].splitlines(keepends=True)
    assert replay(cut) > 10, "a daemon that was killed leaves half a line"


class FullDisk:
    """A file that takes a few lines."""

    closed = False

    def __init__(self) -> None:
        self.lines = 0

    def write(self, data: bytes) -> None:
        self.lines += 1
        if self.lines > 5:
            raise OSError(28, "No space left on device")

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def test_a_full_disk_ends_the_recording_and_nothing_else(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    full = FullDisk()
    recorded(file, LIMITS, out=full)  # type: ignore[arg-type]
    assert full.closed
    assert [record.message for record in caplog.records] == [
        "the recording ends: No space left on device"
    ]


def test_a_constraint_counts_and_what_it_says_is_left_out(file: Path) -> None:
    """Its masks are reserved for when it is played, and where it broke its sequence ends again."""
    facts = replace(toy_facts(), masked_bytes_per_row=40)
    house = House(facts=facts, limits=LIMITS, budget_bytes=2600)
    device = house.device = Breaking(facts, LIMITS, 0.7)
    core = RecordedCore(house.core, facts, LIMITS, create_private(file))
    house.core = core  # type: ignore[assignment]
    streams = [
        house.submit(prompt(12, n), 10, constraint="secret" if n else None, ignore_eos=True)
        for n in range(5)
    ]
    device.breaks, device.whose = 3, streams[2].request.prompt
    house.run()
    house.close()
    assert failed(streams[2]).reason is Reason.BAD_CONSTRAINT
    text = file.read_text()
    assert replay(text.splitlines(keepends=True)) == len(house.plans)
    assert "secret" not in text
    # Played without them it is another run: more fits at once.
    with pytest.raises(Differs):
        replay(text.replace('"constraint":"held"', '"constraint":null').splitlines(keepends=True))

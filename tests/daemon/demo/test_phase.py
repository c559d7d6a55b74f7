"""Both ways of playing a cast, over real sockets against the real daemon on a fake device."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from sapwood.daemon.demo.dialogue import Dialogue, TurnState
from sapwood.daemon.demo.phase import Phase, play
from sapwood.daemon.demo.process import DaemonProcess
from sapwood.daemon.demo.script import ClientPart
from sapwood.scheduler.plan import StepPlan
from sapwood.scheduler.result import StepResult
from tests.daemon.conftest import running
from tests.daemon.fakes import BOS, EOS, FIRST_BYTE, ByteTokenizer, FakeDevice
from tests.quick import few_quick

pytestmark = pytest.mark.anyio

STEP_S = 0.004  # so that a cancel can overtake the reply
FOX = ClientPart("fox", "a fox?", "its name?", seed=1)
BOAT = ClientPart("boat", "a boat?", cancels_at=24)
MOON = ClientPart("moon", "the moon?", joins_at=8)


class PacedDevice(FakeDevice):
    def wait(self, plan: StepPlan) -> StepResult:
        time.sleep(STEP_S)
        return super().wait(plan)


class TurnTokenizer(ByteTokenizer):
    """Closes every turn with EOS, as a template does."""

    def encode_messages(
        self, messages: Sequence[Mapping[str, Any]], *_args: Any, **_options: Any
    ) -> list[int]:
        turns = [[*self._bytes(f"{m['role']}:{m['content']}"), EOS] for m in messages]
        return [BOS, *(id for turn in turns for id in turn), *self._bytes("model:")]

    @staticmethod
    def _bytes(text: str) -> list[int]:
        return [FIRST_BYTE + byte for byte in text.encode()]


class Recorded:
    """A view that remembers what it was shown."""

    def __init__(self) -> None:
        self.title = ""
        self.ticks = 0
        self.shown: Sequence[Dialogue] = ()

    @contextmanager
    def showing(self, title: str, dialogues: Sequence[Dialogue]) -> Iterator[None]:
        self.title, self.shown = title, dialogues
        yield

    def tick(self) -> None:
        self.ticks += 1


async def played(together: bool, view: Recorded) -> Phase:
    async with running(PacedDevice(), tokenizer=TurnTokenizer()) as run:
        daemon = DaemonProcess(run.address, str(run.metrics), 0)
        return await play(daemon, (FOX, BOAT, MOON), together, view)


@pytest.mark.parametrize("together", few_quick([True, False], True))
async def test_everybody_plays_their_part(together: bool) -> None:
    view = Recorded()
    phase = await played(together, view)
    fox, boat, moon = phase.dialogues
    assert [c.state for c in phase.dialogues] == [
        TurnState.DONE,
        TurnState.CANCELLED,
        TurnState.DONE,
    ]
    assert [len(c.turns) for c in phase.dialogues] == [2, 1, 1]
    assert boat.tokens >= BOAT.cancels_at
    assert boat.turns[0].finish is None
    assert (moon.company > 0) is together
    assert phase.tokens_per_s == sum(c.tokens for c in phase.dialogues) / phase.span_s
    assert phase.nodes
    assert view.shown == phase.dialogues and view.ticks > 0
    first, second = fox.turns
    assert second.prompt_ids[: len(first.prompt_ids)] == first.prompt_ids
    assert second.cached_tokens is not None
    assert second.cached_tokens >= len(first.prompt_ids) + len(first.token_ids) - 2


@pytest.mark.parametrize("together", few_quick([True, False], True))
async def test_the_daemon_counts_what_its_clients_count(together: bool) -> None:
    phase = await played(together, Recorded())
    assert [check for check in phase.checks if not check.agrees] == []
    asked = [check for check in phase.checks if check.name == "requests_total length"]
    assert sum(check.counted for check in asked) == 3


async def test_one_by_one_compares_what_finished_exactly() -> None:
    phase = await played(False, Recorded())
    finished = phase.checks[: len(phase.checks) // 2]
    assert all(check.low == check.high for check in finished)
    assert sum(check.high for check in finished) > 0


@pytest.mark.long
async def test_both_phases_do_the_same_work() -> None:
    together, alone = await played(True, Recorded()), await played(False, Recorded())
    for one, other in zip(together.dialogues, alone.dialogues, strict=True):
        assert one.turns[0].prompt_ids == other.turns[0].prompt_ids
        seen = min(one.tokens, other.tokens)
        assert seen > 0
        assert one.turns[0].token_ids[:seen] == other.turns[0].token_ids[:seen]

"""Rounds that are computed once more as they are served: counted, told of, or the end."""

from __future__ import annotations

import logging
import re

import pytest

from sapwood.scheduler.limits import Limits
from sapwood.scheduler.replay import ReplayVerdict
from sapwood.v1 import generation_pb2 as pb
from sapwood.v1 import model_pb2
from tests.daemon.conftest import collect, error_of, prompt_of, reason_of, running, stats, until
from tests.daemon.fakes import FakeDevice, reply_to

EAGER = Limits(check_share=1e9, check_s_max=1e9, check_idle_s_max=1e9)
SECRET = (42, 142, 241)
STORY = re.compile(
    r"step \d+: tokens \[\d+, \d+\) of slot \d+, greedy, depth \d+, beside 0 rows and 0 prompt "
    r"tokens, \[0, 0\) by reference; sequence 1: [\w.,() ]+; slot 0, prompt 3, [\w, ]+times"
)

pytestmark = pytest.mark.anyio


async def test_what_is_sound_is_counted_and_changes_no_reply() -> None:
    async with running(FakeDevice(), EAGER, self_check="count") as run:
        ids, _, _ = await collect(run.generation.Generate(prompt_of(*SECRET, max_tokens=40)))
        assert ids == reply_to(SECRET, 40)
        await until(lambda: stats(run).self_check_rounds > 0)
        assert not any(stats(run).self_check_mismatches.values())
        model = await run.generation.GetModel(pb.GetModelRequest())
    assert model.self_check == model_pb2.SELF_CHECK_COUNT


async def test_a_fault_is_counted_and_told_without_a_word_of_the_prompt(
    caplog: pytest.LogCaptureFixture,
) -> None:
    device = FakeDevice()
    device.wrong = True
    async with running(device, EAGER, self_check="count") as run:
        ids, _, _ = await collect(run.generation.Generate(prompt_of(*SECRET, max_tokens=40)))
        assert ids == reply_to(SECRET, 40)
        await until(lambda: stats(run).self_check_mismatches[ReplayVerdict.FAULT] > 0)
    (told, *_) = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert "logits differ by 2.5; step " in told and "sequence 1: " in told
    assert ", ".join(map(str, SECRET)) not in told and STORY.search(told)


async def test_stop_ends_the_daemon_with_the_story(caplog: pytest.LogCaptureFixture) -> None:
    """D3: with 1, and every open RPC hears of it."""
    device = FakeDevice()
    device.wrong = True
    async with running(device, EAGER, self_check="stop") as run:
        error = await error_of(run.generation.Generate(prompt_of(*SECRET, max_tokens=4000)))
        assert reason_of(error) == ("UNAVAILABLE", "ENGINE_FAILED")
        await run.daemon.wait_ended()
        fault = run.daemon.fault
        assert await run.daemon.stop() == 1
    assert fault is not None
    assert fault.message == "the self-check found a fault, and --self-check stop ends the daemon"
    (told,) = [r.getMessage() for r in caplog.records if r.levelno == logging.CRITICAL]
    assert "logits differ by 2.5; step " in told and "sequence 1: " in told
    assert ", ".join(map(str, SECRET)) not in told and STORY.search(told)


async def test_off_computes_nothing_once_more() -> None:
    device = FakeDevice()
    device.wrong = True
    async with running(device, EAGER) as run:
        await collect(run.generation.Generate(prompt_of(*SECRET, max_tokens=40)))
        assert stats(run).self_check_rounds == 0
        model = await run.generation.GetModel(pb.GetModelRequest())
    assert model.self_check == model_pb2.SELF_CHECK_OFF

"""Replies that are gone on with: after a cut, by another stream, and once more when whole."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.daemon.conftest import (
    Running,
    collect,
    error_of,
    open_rpcs,
    prompt_of,
    reason_of,
    running,
    until,
)
from tests.daemon.fakes import FIRST_BYTE, FakeDevice, reply_to
from tests.daemon.rpc.turns import PROMPT, began, create, ended, ids_of, resume, stepped, turn

pytestmark = pytest.mark.anyio


async def test_n3_a_broken_stream_is_resumed_with_each_token_once(run: Running) -> None:
    """Cancelled in the middle, then from there; then once more, whole, and from its end."""
    await create(run)
    call = run.generation.Generate(prompt_of(*PROMPT, session="a", max_tokens=60))
    ids: list[int] = []
    text = ""
    async for event in call:
        ids += event.delta.token_ids
        text += event.delta.text
        if len(ids) > 5:
            break
    call.cancel()
    await until(lambda: not open_rpcs(run))
    rest, more, events = await collect(run.generation.Generate(resume(len(PROMPT) + len(ids))))
    assert ids + rest == reply_to(PROMPT, 60)
    assert (text + more).encode() == bytes(i - FIRST_BYTE for i in ids + rest)
    assert events[0].WhichOneof("event") == "prefill"
    assert events[0].prefill.processed_tokens == len(PROMPT)
    usage = events[-1].finish.usage
    assert (usage.completion_tokens, usage.prompt_tokens) == (60, len(PROMPT))
    again, said, events = await collect(run.generation.Generate(resume(0)))
    assert again == ids + rest and said == text + more
    assert events[-1].finish.usage.decode_steps == usage.decode_steps
    nothing, _, events = await collect(run.generation.Generate(resume(len(PROMPT) + 60)))
    assert nothing == [] and events[-1].HasField("finish")
    assert await ids_of(run) == [*PROMPT, *ids, *rest]


async def test_n3_a_stream_that_still_runs_is_taken_over() -> None:
    async with running(FakeDevice(gated=True)) as run:
        await stepped(run, create(run))
        old = await began(run, prompt_of(*PROMPT, session="a", max_tokens=400))
        again = asyncio.ensure_future(collect(run.generation.Generate(resume(len(PROMPT)))))
        error = await stepped(run, ended(old))
        assert error.code().name == "CANCELLED" and "another stream" in (error.details() or "")
        run.device.ungate()
        ids, _, events = await again
        assert ids == reply_to(PROMPT, 400)
        assert events[-1].finish.usage.cached_tokens == 0, "its row went on"


async def test_a_long_reply_is_told_again_in_pieces(run: Running) -> None:
    """More than a mailbox holds, to a client that reads."""
    await create(run)
    ids = await turn(run, prompt_of(5, session="a", max_tokens=3000))
    again, _, events = await collect(run.generation.Generate(resume(0)))
    assert again == ids
    assert max(len(event.delta.token_ids) for event in events) <= 256


async def test_a_taken_over_stream_keeps_within_its_principals_quota(tmp_path: Path) -> None:
    """It takes the place of the old one, also where there is no other."""
    file = tmp_path / "c.toml"
    file.write_text("[principals.local]\nrunning_max = 1\n")
    async with running(FakeDevice(gated=True), settings={"config": file}) as run:
        await stepped(run, create(run))
        old = await began(run, prompt_of(*PROMPT, session="a", max_tokens=400))
        taken = asyncio.ensure_future(collect(run.generation.Generate(resume(0))))
        await stepped(run, ended(old))
        error = await error_of(run.generation.Generate(prompt_of(5)))
        assert reason_of(error) == ("RESOURCE_EXHAUSTED", "CLIENT_QUOTA")
        run.device.ungate()
        assert (await taken)[0] == reply_to(PROMPT, 400)
        assert (await collect(run.generation.Generate(prompt_of(5, max_tokens=2))))[0]

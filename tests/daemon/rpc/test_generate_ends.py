"""Generate, ended otherwise than by its reply: cancel, deadline, a slow reader (R2, R6)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from sapwood.scheduler.limits import Limits
from sapwood.scheduler.outcomes import Outcome
from sapwood.v1 import generation_pb2 as pb
from sapwood.v1 import generation_pb2_grpc
from tests.daemon.conftest import (
    Running,
    collect,
    open_rpcs,
    prompt_of,
    reason_of,
    running,
    stats,
    until,
)
from tests.daemon.fakes import (
    LONG_TEXT,
    LONG_TEXT_BYTES,
    ByteTokenizer,
    FakeDevice,
    next_token,
    reply_to,
)
from tests.daemon.rpc.conftest import PROMPT

pytestmark = pytest.mark.anyio


async def test_r2_cancel_in_the_queue(gated: Running) -> None:
    first = gated.generation.Generate(prompt_of(*PROMPT))
    await until(lambda: stats(gated).requests_running == 1)
    second = gated.generation.Generate(prompt_of(8, 9))
    await until(lambda: open_rpcs(gated) == 2)
    gated.device.step()
    await until(lambda: stats(gated).requests_waiting == 1)
    second.cancel()
    await until(lambda: open_rpcs(gated) == 1)
    gated.device.step()
    await until(lambda: stats(gated).requests[Outcome.CANCELLED] == 1)
    assert stats(gated).requests_waiting == 0
    assert stats(gated).requests_running == 1
    first.cancel()


async def test_r2_cancel_in_prefill_keeps_what_was_computed() -> None:
    limits = Limits(prefill_tokens_max=64)
    prompt = tuple(5 + n % 200 for n in range(400))
    async with running(FakeDevice(gated=True), limits) as run:
        call = run.generation.Generate(prompt_of(*prompt, max_tokens=4))
        run.device.step(2)
        event = await call.read()
        assert 0 < event.prefill.processed_tokens < 400
        call.cancel()
        await until(lambda: open_rpcs(run) == 0)
        run.device.ungate()
        await until(lambda: stats(run).requests[Outcome.CANCELLED] == 1 and not run.device.slots)
        ids, _, events = await collect(run.generation.Generate(prompt_of(*prompt, max_tokens=4)))
        assert events[-1].finish.usage.cached_tokens >= event.prefill.processed_tokens
        assert ids == reply_to(prompt, 4)


async def test_r2_cancel_in_decode_frees_the_slot_and_disturbs_nobody() -> None:
    async with running(FakeDevice(gated=True)) as run:
        other = run.generation.Generate(prompt_of(8, 9, max_tokens=50))
        call = run.generation.Generate(prompt_of(*PROMPT, max_tokens=50))
        await until(lambda: open_rpcs(run) == 2)
        run.device.step(4)
        async for event in call:
            if event.WhichOneof("event") == "delta":
                break
        call.cancel()
        await until(lambda: open_rpcs(run) == 1)
        run.device.ungate()
        ids, _, _ = await collect(other)
        assert ids == reply_to((8, 9), 50)
        await until(lambda: not run.device.slots)
        assert stats(run).requests[Outcome.CANCELLED] == 1


async def test_r2_a_channel_that_closes_cancels_its_requests(gated: Running) -> None:
    channel = grpc.aio.insecure_channel(gated.address)
    method = "/sapwood.v1.GenerationService/Generate"
    call = channel.unary_stream(
        method, pb.GenerateRequest.SerializeToString, pb.GenerateResponse.FromString
    )(prompt_of(*PROMPT))
    gated.device.step()
    await call.read()
    await channel.close()
    await until(lambda: open_rpcs(gated) == 0)
    gated.device.ungate()
    await until(lambda: stats(gated).requests[Outcome.CANCELLED] == 1 and not gated.device.slots)


async def test_r2_cancel_while_the_prompt_is_tokenised_is_counted() -> None:
    tokenizer = ByteTokenizer()
    async with running(tokenizer=tokenizer) as run:
        tokenizer.gate.clear()
        call = run.generation.Generate(pb.GenerateRequest(text="hello"))
        await until(lambda: bool(tokenizer.threads))
        call.cancel()
        await until(lambda: run.daemon._gate.turned_away[Outcome.CANCELLED] == 1)
        tokenizer.gate.set()
        assert stats(run).requests_running == 0


@pytest.mark.parametrize("phase", ["queue", "prefill", "decode"])
async def test_r2_the_deadline_is_honoured_in_every_phase(phase: str, gated: Running) -> None:
    before = [gated.generation.Generate(prompt_of(8, 9))] if phase == "queue" else []
    await until(lambda: stats(gated).requests_running == len(before))
    call = gated.generation.Generate(prompt_of(*PROMPT, max_tokens=100), timeout=0.6)
    await until(lambda: open_rpcs(gated) == len(before) + 1)
    gated.device.step(3 if phase == "decode" else 1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(call)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: open_rpcs(gated) == len(before))
    assert stats(gated).requests_waiting == len(before)
    gated.device.step(3)
    await until(lambda: stats(gated).requests[Outcome.DEADLINE] == 1)
    for blocker in before:
        blocker.cancel()


async def test_request_s_max_is_the_deadline_of_those_who_have_none() -> None:
    limits = Limits(request_s_max=0.2)
    async with running(FakeDevice(gated=True), limits) as run:
        events = aiter(run.generation.Generate(prompt_of(*PROMPT)))
        run.device.step()
        assert (await anext(events)).WhichOneof("event") == "prefill"
        await asyncio.sleep(0.25)
        run.device.step(2)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collect(events)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert stats(run).requests[Outcome.DEADLINE] == 1


@asynccontextmanager
async def slow_stub(run: Running) -> AsyncIterator[Any]:
    """A client whose receive window never grows, however slow the machine makes it look."""
    # What waits for it comes as one message, of whatever size these tests' limits allow.
    options = [("grpc.http2.bdp_probe", 0), ("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(run.address, options) as channel:
        yield generation_pb2_grpc.GenerationServiceStub(channel)


async def test_r6_a_slow_reader_ends_alone() -> None:
    """It reads nothing until a write of its handler is blocked and its mailbox overflows."""
    limits = Limits(mailbox_bytes_max=4 * LONG_TEXT_BYTES, write_s_max=60.0)
    async with running(FakeDevice(gated=True), limits) as run, slow_stub(run) as stub:
        other = run.generation.Generate(prompt_of(8, 9, max_tokens=3000, draft_tokens=0))
        run.device.next_token = lambda tokens: LONG_TEXT if tokens[0] == 7 else next_token(tokens)
        events = aiter(stub.Generate(prompt_of(7, max_tokens=3000, draft_tokens=0)))
        await until(lambda: open_rpcs(run) == 2)
        while stats(run).requests[Outcome.FAILED] == 0:
            run.device.step()
            await asyncio.sleep(0.001)
        assert open_rpcs(run) == 1
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collect(events)
        assert reason_of(caught.value) == ("RESOURCE_EXHAUSTED", "SLOW_READER")
        run.device.ungate()
        ids, _, _ = await collect(other)
        assert ids == reply_to((8, 9), 3000)


async def test_r6_one_write_lasts_at_most_write_s_max() -> None:
    limits = Limits(mailbox_bytes_max=1 << 30, write_s_max=0.3)
    async with running(FakeDevice(), limits) as run, slow_stub(run) as stub:
        run.device.next_token = lambda tokens: LONG_TEXT
        events = aiter(stub.Generate(prompt_of(7, max_tokens=1000)))
        await until(lambda: sum(stats(run).requests.values()) == 1)
        await until(lambda: open_rpcs(run) == 0)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collect(events)
        assert reason_of(caught.value) == ("RESOURCE_EXHAUSTED", "SLOW_READER")

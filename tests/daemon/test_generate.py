"""Generate over real sockets: order, usage, cancel and deadline at each phase."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from rootstock.v1 import generation_pb2 as pb
from tests.daemon.conftest import Running, running
from tests.daemon.fakes import EOS, FakeDevice, reply_to

pytestmark = pytest.mark.anyio


def prompt_of(*ids: int, **fields: object) -> pb.GenerateRequest:
    return pb.GenerateRequest(token_ids={"ids": ids}, **fields)


async def collect(call: grpc.aio.UnaryStreamCall) -> tuple[list[int], str, list[pb.GenerateResponse]]:
    events = [event async for event in call]
    ids = [i for e in events if e.WhichOneof("event") == "delta" for i in e.delta.token_ids]
    text = "".join(e.delta.text for e in events if e.WhichOneof("event") == "delta")
    return ids, text, events


async def test_a_reply_is_prefill_then_deltas_then_one_finish() -> None:
    async with running() as run:
        ids, text, events = await collect(run.generation.Generate(prompt_of(5, 6, 7, max_tokens=20)))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "prefill"
    assert kinds.count("finish") == 1 and kinds[-1] == "finish"
    assert set(kinds[1:-1]) == {"delta"}
    assert ids == reply_to((5, 6, 7), 20)
    assert text == bytes(i - 3 for i in ids).decode()
    assert events[0].prefill.prompt_tokens == events[0].prefill.processed_tokens == 3
    finish = events[-1].finish
    assert finish.reason == pb.FINISH_REASON_LENGTH
    assert finish.usage.completion_tokens == 20


async def test_r1_32_clients_at_once_are_complete_and_in_order() -> None:
    async with running() as run:
        prompts = [(10 + n, 20, 30 + n) for n in range(32)]
        calls = [run.generation.Generate(prompt_of(*p, max_tokens=60 + n)) for n, p in enumerate(prompts)]
        replies = await asyncio.gather(*(collect(call) for call in calls))
    for n, (prompt, (ids, _, events)) in enumerate(zip(prompts, replies, strict=True)):
        assert ids == reply_to(prompt, 60 + n)
        assert [e.WhichOneof("event") for e in events].count("finish") == 1

"""A gateway gives requests up: by Abort, or by leaving."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sapwood.daemon.rpc.call import Call
from sapwood.scheduler.limits import Limits
from tests.daemon.conftest import open_rpcs, stats, until
from tests.daemon.fakes import FakeDevice, reply_to
from tests.daemon.gateway.conftest import chunked_ids, needs_protocol, working

pytestmark = [pytest.mark.anyio, needs_protocol]


async def test_abort_ends_the_stream_with_what_was_said_and_frees_the_row() -> None:
    async with working(FakeDevice(gated=True)) as worker:
        call = worker.stub.Generate(worker.request(5, 6, max_tokens=500, id="gone"))
        other = worker.stub.Generate(worker.request(7, 8, max_tokens=9, id="stays"))
        responses = aiter(call)
        coming = asyncio.ensure_future(anext(responses))
        while not coming.done():  # steps may all be the other's, whose call may come first
            worker.run.device.step()
            await asyncio.sleep(0.01)
        first = await coming
        await worker.stub.Abort(worker.pb.AbortRequest(request_ids=["gone", "nobody"]))
        rest = [one async for one in responses]
        worker.run.device.ungate()
        assert [one.complete.finish_reason async for one in other][-1] == "length"
        await until(lambda: stats(worker.run).requests_running == 0)
    assert rest[-1].complete.finish_reason == "abort"
    said = chunked_ids([first, *rest])
    assert said == reply_to((5, 6), len(said)), "nothing is lost and nothing comes twice"
    assert rest[-1].complete.completion_tokens == len(said) > 0


async def test_abort_interrupts_no_message_that_is_on_its_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """gRPC has the one until it is taken, and would refuse the last one."""
    write, held, going = Call.write, asyncio.Event(), asyncio.Event()

    async def held_write(call: Call, message: Any) -> None:
        if type(message).__name__ == "GenerateResponse" and not going.is_set():
            held.set()
            await going.wait()
        await write(call, message)

    monkeypatch.setattr(Call, "write", held_write)
    async with working() as worker:
        call = worker.stub.Generate(worker.request(5, 6, max_tokens=500, id="held"))
        await held.wait()
        await worker.stub.Abort(worker.pb.AbortRequest(request_ids=["held"]))
        going.set()
        told = [one async for one in call]
    assert told[-1].complete.finish_reason == "abort"
    said = chunked_ids(told)
    assert said == reply_to((5, 6), len(said)) and said, "what was on its way came"


async def test_abort_reaches_a_request_that_is_still_tokenised_or_queued() -> None:
    async with working(FakeDevice(gated=True), Limits(slots_max=1)) as worker:
        calls = [
            worker.stub.Generate(worker.request(5, 6, max_tokens=50, id=f"r{n}")) for n in range(3)
        ]
        await until(lambda: open_rpcs(worker.run) == 3)
        await worker.stub.Abort(worker.pb.AbortRequest(request_ids=["r1", "r2"]))
        for call in calls[1:]:
            (end,) = [one async for one in call]
            assert (end.complete.finish_reason, end.complete.completion_tokens) == ("abort", 0)
        worker.run.device.ungate()
        assert [one async for one in calls[0]][-1].complete.finish_reason == "length"


async def test_two_requests_may_have_one_id() -> None:
    async with working(FakeDevice(gated=True)) as worker:
        calls = [worker.stub.Generate(worker.request(5, n, max_tokens=50)) for n in (6, 7)]
        await until(lambda: open_rpcs(worker.run) == 2)
        await worker.stub.Abort(worker.pb.AbortRequest(request_ids=["r"]))
        for call in calls:
            assert [one async for one in call][-1].complete.finish_reason == "abort"


async def test_a_gateway_that_leaves_takes_its_requests_along() -> None:
    async with working(FakeDevice(gated=True)) as worker:
        call = worker.stub.Generate(worker.request(5, 6, max_tokens=500))
        await until(lambda: open_rpcs(worker.run) == 1)
        call.cancel()
        await until(lambda: open_rpcs(worker.run) == 0)
        worker.run.device.ungate()
        await until(lambda: stats(worker.run).requests_running == 0)

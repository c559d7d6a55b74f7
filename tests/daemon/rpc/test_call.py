"""The answering side of one RPC, over a real socket (R1, R6)."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import anyio
import grpc
import pytest

from sapwood.daemon.rpc.boundary import Behaviour, service_handler
from sapwood.daemon.rpc.call import Call, Context
from sapwood.daemon.rpc.entrance import Entrance
from sapwood.daemon.rpc.refusals import draining, slow_reader
from sapwood.daemon.rpc.services import GENERATION
from sapwood.scheduler.limits import Limits
from sapwood.v1 import generation_pb2 as pb
from sapwood.v1 import generation_pb2_grpc
from tests.daemon.conftest import collect, reason_of

pytestmark = pytest.mark.anyio

# More than a receive window that never grows.
LONG = pb.GenerateResponse(delta=pb.Delta(text="x" * (1 << 20)))
RETRIES = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.01s",
                "maxBackoff": "0.01s",
                "backoffMultiplier": 1,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}


@asynccontextmanager
async def answered_by(generate: Behaviour) -> AsyncIterator[Any]:
    """A stub of a service whose Generate is this, by a client whose window never grows."""
    server = grpc.aio.server()
    handler = service_handler(GENERATION, {"Generate": generate}, Entrance(Limits(), 9))
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    options = [("grpc.http2.bdp_probe", 0), ("grpc.service_config", json.dumps(RETRIES))]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        yield generation_pb2_grpc.GenerationServiceStub(channel)
    await server.stop(5.0)


async def status_of_call(call: Any) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(aiter(call))
    return reason_of(caught.value)


@pytest.mark.parametrize("before", [0, 1], ids=["first write", "second write"])
async def test_r1_a_status_follows_a_write_that_was_interrupted(before: int) -> None:
    interrupted = anyio.Event()

    async def generate(_request: Any, call: Call) -> None:
        for _ in range(before):
            await call.write(pb.GenerateResponse(delta=pb.Delta(text="y")))
        with anyio.move_on_after(0.1) as scope:
            await call.write(LONG)
        assert scope.cancelled_caught
        interrupted.set()
        raise slow_reader()

    async with answered_by(generate) as stub:
        call = stub.Generate(pb.GenerateRequest(), timeout=20)
        await interrupted.wait()
        assert await status_of_call(call) == ("RESOURCE_EXHAUSTED", "SLOW_READER")


async def test_r1_a_status_follows_headers_that_were_interrupted() -> None:
    """A cancel that comes before gRPC has taken the headers interrupts nothing of them."""

    async def generate(_request: Any, call: Call) -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await call.write(LONG)
        raise slow_reader()

    async with answered_by(generate) as stub:
        call = stub.Generate(pb.GenerateRequest(), timeout=20)
        assert await status_of_call(call) == ("RESOURCE_EXHAUSTED", "SLOW_READER")


@pytest.mark.parametrize(("messages", "attempts"), [(0, 3), (1, 1)])
async def test_what_is_refused_before_a_message_may_be_retried(
    messages: int, attempts: int
) -> None:
    seen = 0

    async def generate(_request: Any, call: Call) -> None:
        nonlocal seen
        seen += 1
        for _ in range(messages):
            await call.write(pb.GenerateResponse(delta=pb.Delta(text="y")))
        raise draining()

    async with answered_by(generate) as stub:
        status, _ = await status_of_call(stub.Generate(pb.GenerateRequest(), timeout=20))
        assert (status, seen) == ("UNAVAILABLE", attempts)


async def test_a_client_that_went_leaves_nothing_behind() -> None:
    """Its handler ends while a write of it is blocked; the next call is answered."""
    ended = anyio.Event()

    async def generate(request: Any, call: Call) -> None:
        if request.max_tokens:
            return
        try:
            await call.write(LONG)
            await call.write(LONG)
        finally:
            ended.set()

    async with answered_by(generate) as stub:
        call = stub.Generate(pb.GenerateRequest())
        await asyncio.sleep(0.1)
        call.cancel()
        with anyio.fail_after(20):
            await ended.wait()
        assert [event async for event in stub.Generate(pb.GenerateRequest(max_tokens=1))] == []


class Gone:
    """A context whose client went while its headers were on their way."""

    async def send_initial_metadata(self, _metadata: Any) -> None:
        await asyncio.sleep(0.01)
        raise grpc.aio.InternalError("gone")


async def test_headers_for_nobody_are_nobodys_error(caplog: pytest.LogCaptureFixture) -> None:
    """R7: a client that goes at the wrong moment leaves no traceback in the log."""
    call = Call(cast("Context", Gone()))
    writing = asyncio.create_task(call.write(pb.GenerateResponse()))
    await asyncio.sleep(0)
    writing.cancel()
    await asyncio.sleep(0.05)
    del call, writing
    gc.collect()
    assert caplog.text == ""

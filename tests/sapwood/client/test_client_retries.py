"""What was refused with a time to retry is asked for again; nothing else is, and not for ever."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

import sapwood
from sapwood.client import lanes
from sapwood.client.attempts import RETRYING_S_MAX, Attempts
from sapwood.client.errors import Details
from sapwood.client.lanes import Lanes
from tests.daemon.conftest import until
from tests.sapwood.client.conftest import Connect, Either
from tests.sapwood.client.fake import (
    FakeDaemon,
    Request,
    Responses,
    done,
    each,
    prefill,
    read_to_a_delta,
    refuse,
    whole_reply,
)
from tests.sapwood.client.test_client_closed import CALLS, finished

pytestmark = pytest.mark.anyio

# What is asked for is a reply of a script, which is no document of any type.
REFUSABLE = sorted(CALLS.keys() - {"is_serving", "parse"})


def refusal(retry_after_s: float | None) -> sapwood.SapwoodError:
    details = Details("QUEUE_FULL", {}, retry_after_s)
    return sapwood.ResourceExhausted(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", details)


@pytest.mark.parametrize("call", REFUSABLE)
async def test_a_refusal_with_a_time_to_retry_is_not_seen(
    connect: Connect, daemon: FakeDaemon, address: str, call: str
) -> None:
    daemon.busy = 2
    async with connect(address) as client:
        began = time.monotonic()
        await finished(CALLS[call](client))
    assert daemon.busy == 0
    assert time.monotonic() - began >= 2 * daemon.retry_after_s, "not before the daemon's own time"


async def test_the_reply_is_whole_whatever_was_refused_before(
    connect: Connect, daemon: FakeDaemon, address: str
) -> None:
    daemon.busy = 2
    async with connect(address) as client:
        reply = await done(client.generate("hello", seed=7).collect())
    assert reply.text == "Hi there"
    assert len(daemon.requests) == 3
    assert len({request.SerializeToString() for request in daemon.requests}) == 1


async def test_nothing_else_is_asked_for_again(
    connect: Connect, daemon: FakeDaemon, address: str
) -> None:
    """Without a time to retry, or once an event has come."""

    def loading(request: Request, context: grpc.ServicerContext) -> Responses:
        refuse(context, grpc.StatusCode.UNAVAILABLE, "loading")

    def busy_later(request: Request, context: grpc.ServicerContext) -> Responses:
        yield prefill(0, 1, 1)
        daemon.busy = 1
        daemon._answer(context)

    async with connect(address) as client:
        for daemon.reply in loading, busy_later:
            daemon.requests.clear()
            with pytest.raises((sapwood.Unavailable, sapwood.ResourceExhausted)):
                await done(client.generate("hello").collect())
            assert len(daemon.requests) == 1


@pytest.mark.parametrize("call", ["generate", "tokenize"])
async def test_a_retry_past_the_deadline_is_the_refusal_at_once(
    connect: Connect, daemon: FakeDaemon, address: str, call: str
) -> None:
    daemon.busy, daemon.retry_after_s = 9, 40.0
    async with connect(address) as client:
        began = time.monotonic()
        made: dict[str, Any] = {
            "generate": lambda: client.generate("hello", timeout=30).collect(),
            "tokenize": lambda: client.tokenize("hello", timeout=30),
        }
        with pytest.raises(sapwood.ResourceExhausted, match="QUEUE_FULL: busy") as caught:
            await done(made[call]())
        assert time.monotonic() - began < 20
    assert caught.value.retry_after_s == 40.0
    assert len(daemon.requests) == 1


async def test_all_attempts_share_one_deadline(
    connect: Connect, daemon: FakeDaemon, address: str
) -> None:
    left: list[float] = []

    def reply(request: Request, context: grpc.ServicerContext) -> Responses:
        left.append(context.time_remaining() or 0)
        daemon.busy = len(left) < 3
        daemon._answer(context)
        return whole_reply(request, context)

    daemon.reply, daemon.retry_after_s = reply, 0.4
    async with connect(address) as client:
        await done(client.generate("hello", timeout=6).collect())
    assert len(left) == 3
    # gRPC rounds what it tells of a deadline up, to a tenth of a second or so.
    assert 6.1 >= left[0] > left[1] + 0.2 > left[2] + 0.4


@asynccontextmanager
async def waiting(
    client: Either, daemon: FakeDaemon, what: Any
) -> AsyncIterator[asyncio.Task[Any]]:
    """A call that waits for its next attempt, in a thread of its own where it would block.

    The daemon is busy before: a stream is sent where it is made.
    """

    async def reading() -> None:
        await finished(what())

    if isinstance(client, sapwood.Client):
        task = asyncio.ensure_future(asyncio.to_thread(lambda: asyncio.run(reading())))
    else:
        task = asyncio.ensure_future(reading())
    await until(lambda: daemon.busy < 9)
    await asyncio.sleep(0.2)
    began = time.monotonic()
    yield task
    with pytest.raises(sapwood.Cancelled):
        await task
    assert time.monotonic() - began < 5, "it slept on"


async def test_a_stream_that_waits_can_be_cancelled(
    connect: Connect, daemon: FakeDaemon, address: str
) -> None:
    daemon.busy, daemon.retry_after_s = 9, 30.0
    async with connect(address) as client:
        stream = client.generate("hello")
        async with waiting(client, daemon, stream.collect):
            stream.cancel()


@pytest.mark.parametrize("call", ["generate", "tokenize"])
async def test_what_waits_ends_with_its_client(
    connect: Connect, daemon: FakeDaemon, address: str, call: str
) -> None:
    daemon.busy, daemon.retry_after_s = 9, 30.0
    async with connect(address) as client:
        what: dict[str, Any] = {
            "generate": lambda: client.generate("hello").collect(),
            "tokenize": lambda: client.tokenize("hello", timeout=60),
        }
        async with waiting(client, daemon, what[call]):
            await done(client.close())


async def test_a_cancelled_task_does_not_wait(daemon: FakeDaemon, address: str) -> None:
    daemon.busy, daemon.retry_after_s = 9, 30.0
    async with sapwood.AsyncClient(address) as client:
        task = asyncio.ensure_future(client.generate("hello").collect())
        await until(lambda: daemon.busy < 9)
        task.cancel()
        await asyncio.wait([task], timeout=5)
        assert task.cancelled()
    assert len(daemon.requests) == 1


def test_waits_grow_differ_and_end() -> None:
    tries = Attempts(None, 100.0)
    waits = [tries.wait_s(refusal(1.0), 100.0, 0.0) for _ in range(8)]
    assert waits == pytest.approx([1.0, 1.25, 1.5625, 1.953125, 2.0, 2.0, 2.0, 2.0])
    assert Attempts(None, 0.0).wait_s(refusal(1.0), 0.0, 0.999) == pytest.approx(1.5, rel=0.01)
    assert Attempts(None, 0.0).wait_s(refusal(None), 0.0, 0.0) is None
    assert (Attempts(None, 0.0).wait_s(refusal(0.0), 0.0, 0.0) or 0) > 0, "no spinning"
    assert (Attempts(None, 0.0).wait_s(refusal(-5.0), 0.0, 0.0) or 0) > 0
    last_s = 100.0 + RETRYING_S_MAX
    grown = Attempts(None, 100.0)
    assert grown.wait_s(refusal(1.0), last_s - 1.2, 0.99) == 1.0, "as told, where more is too late"
    assert Attempts(None, 100.0).wait_s(refusal(1.0), last_s - 1.5, 0.0) == 1.0
    assert Attempts(None, 100.0).wait_s(refusal(1.0), last_s - 0.5, 0.0) is None
    assert Attempts(5.0, 100.0).wait_s(refusal(1.0), 103.5, 0.0) == 1.0
    assert Attempts(5.0, 100.0).wait_s(refusal(1.0), 104.0, 0.0) is None
    assert Attempts(300.0, 0.0).wait_s(refusal(1.0), 200.0, 0.0) == 1.0, "its own deadline"


def test_an_attempt_gets_what_is_left() -> None:
    assert Attempts(None, 0.0).left_s(1e9) is None
    assert Attempts(5.0, 100.0).left_s(103.0) == 2.0
    assert Attempts(5.0, 100.0).left_s(200.0) == 0.0


async def test_a_client_with_many_calls_opens_more_connections(
    connect: Connect, daemon: FakeDaemon, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "_CALLS_PER_LANE", 2)
    free = threading.Event()

    def held(request: Request, context: grpc.ServicerContext) -> Responses:
        yield from list(whole_reply(request, context))[:3]
        free.wait(30)

    daemon.reply = held
    async with connect(address) as client:
        streams = [client.generate("hello") for _ in range(6)]
        for stream in streams:
            await read_to_a_delta(stream)
        assert len(daemon.peers) == 3
        free.set()
        for stream in streams:
            async for _ in each(stream):
                pass
        assert len(client._lanes.all) == 3
        await until(lambda: client._lanes._calls == [0, 0, 0])  # what ended counts no more


def test_lanes_fill_evenly_and_are_bounded() -> None:
    made: list[int] = []
    ours = Lanes(lambda number: made.append(number) or len(made))  # type: ignore[func-returns-value]
    taken = [ours.take() for _ in range(1000)]
    assert len(made) == len(set(made)) == lanes._LANES_MAX
    assert max(ours._calls) - min(ours._calls) <= lanes._CALLS_PER_LANE
    for _, leave in taken:
        leave()
    assert set(ours._calls) == {0}


async def test_clients_of_one_process_do_not_share_one_connection(
    daemon: FakeDaemon, address: str
) -> None:
    clients = [sapwood.Client(address) for _ in range(20)]
    for client in clients:
        client.get_model()
    assert len(daemon.peers) == lanes._LANES_MAX
    for client in clients:
        client.close()

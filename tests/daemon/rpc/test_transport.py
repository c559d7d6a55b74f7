"""What the connection itself bears: pings, and how much metadata, over real sockets."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2

from sapwood.scheduler.limits import Limits
from tests.daemon.conftest import Running, running, until
from tests.daemon.rpc.frames import Frames, connected

pytestmark = pytest.mark.anyio

CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
TOO_MANY = b"too_many_pings"


async def pinged(run: Running, every_s: float, for_s: float, *, streams: bool) -> Frames:
    """A connection after that, or as the daemon left it. streams: on a stream that says nothing."""
    async with connected(run.address) as frames:
        if streams:
            frames.call(WATCH)
        for _ in range(round(for_s / every_s)):
            frames.ping()
            await asyncio.sleep(every_s)
            if not frames.open:
                break
        assert frames.open or frames.goodbye
    return frames


async def both(run: Running, every_s: float, for_s: float) -> Iterable[Frames]:
    pings = (pinged(run, every_s, for_s, streams=streams) for streams in (False, True))
    return await asyncio.gather(*pings)


@pytest.mark.parametrize(
    ("every_s", "for_s"),
    [(0.5, 4), pytest.param(1, 155, marks=[pytest.mark.long, pytest.mark.timeout(300)])],
)
async def test_who_pings_now_and_then_lives(every_s: float, for_s: float) -> None:
    async with running() as run:
        for frames in await both(run, every_s, for_s):
            assert (frames.open, frames.goodbye, frames.ended_streams) == (True, b"", set())
            assert frames.pongs >= for_s / every_s - 1


async def test_pings_that_a_stall_held_up_are_borne() -> None:
    async with running() as run, connected(run.address) as frames:
        for _ in range(20):
            frames.ping()
        await until(lambda: frames.pongs == 20 or not frames.open)
        assert frames.open


async def test_who_pings_a_hundred_times_a_second_is_cut() -> None:
    async with running() as run:
        for frames in await both(run, 0.01, 30):
            assert (frames.open, frames.goodbye) == (False, TOO_MANY)


@asynccontextmanager
async def crowd(address: str, count: int, *, speaks: bool = True) -> AsyncIterator[list[Frames]]:
    """So many connections, which say that they speak HTTP/2 or nothing at all."""
    async with AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(connected(address, speaks=speaks)) for _ in range(count)
        ]
        await asyncio.sleep(0.3)
        yield opened


async def ways_in(run: Running) -> list[int]:
    """How many of twenty connections each listener keeps."""
    kept = []
    for address in map(str, run.daemon.grpc_addresses):
        async with crowd(address, 20) as opened:
            kept.append(sum(frames.open for frames in opened))
    return kept


TWO = {"listen": ["127.0.0.1:0", "127.0.0.1:0"]}


async def test_connections_have_a_limit_in_equal_parts_for_the_listeners() -> None:
    async with running(limits=Limits(connections_max=11), settings=TWO) as run:
        assert await ways_in(run) == [5, 5]


async def test_connections_leave_the_descriptors_that_the_daemon_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for soft, each in ((Limits().descriptors_kept + 15, 7), (40, 1), (resource.RLIM_INFINITY, 20)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        async with running(settings=TWO) as run:
            assert await ways_in(run) == [each, each]


async def test_one_connection_too_many_is_told_so_and_comes_in_when_another_leaves() -> None:
    async with running(limits=Limits(connections_max=3)) as run:
        async with crowd(run.address, 3) as opened:
            assert all(frames.open for frames in opened)
            assert await checked(run, 0) is grpc.StatusCode.UNAVAILABLE
            assert all(frames.open for frames in opened)
        await run.channel.close()
        await asyncio.sleep(0.1)
        async with grpc.aio.insecure_channel(run.address) as run.channel:
            assert await checked(run, 0) is grpc.StatusCode.OK


async def test_connections_that_say_nothing_do_not_stay() -> None:
    limits = Limits(connections_max=3, handshake_s_max=2)
    async with running(limits=limits) as run, crowd(run.address, 3, speaks=False) as silent:
        assert all(frames.open for frames in silent)
        async with asyncio.timeout(30):
            await until(lambda: not any(frames.open for frames in silent))
        assert await checked(run, 0) is grpc.StatusCode.OK


async def checked(run: Running, metadata_bytes: int) -> grpc.StatusCode:
    """How a health check ends that comes with so many bytes of its own."""
    check: grpc.aio.UnaryUnaryMultiCallable[
        health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
    ]
    check = run.channel.unary_unary(CHECK, health_pb2.HealthCheckRequest.SerializeToString)
    call = check(health_pb2.HealthCheckRequest(), metadata=[("x", "x" * metadata_bytes)])
    return await call.code()


async def test_metadata_has_one_limit_and_not_one_of_chance() -> None:
    limit = Limits().metadata_bytes_max
    async with running() as run:
        over = await asyncio.gather(*(checked(run, limit + 1024) for _ in range(60)))
        assert set(over) == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert await checked(run, limit - 1024) is grpc.StatusCode.OK

"""What the connection itself bears: pings, and how much metadata, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

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

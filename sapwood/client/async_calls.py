"""One attempt of the asynchronous client, and where the next one is waited for."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import grpc

from sapwood.client.channel import options
from sapwood.client.credentials import CallCredentials, Metadata
from sapwood.client.errors import Cancelled
from sapwood.client.lanes import Lanes
from sapwood.v1 import cache_pb2_grpc, generation_pb2, generation_pb2_grpc, session_pb2_grpc

if TYPE_CHECKING:  # the types of the async stubs are there for type checkers alone
    from sapwood.v1.cache_pb2_grpc import CacheServiceAsyncStub
    from sapwood.v1.generation_pb2_grpc import GenerationServiceAsyncStub
    from sapwood.v1.session_pb2_grpc import SessionServiceAsyncStub

AsyncGenerateCall = grpc.aio.UnaryStreamCall[
    generation_pb2.GenerateRequest, generation_pb2.GenerateResponse
]


class AsyncLane(NamedTuple):
    """A channel and the stubs on it."""

    channel: grpc.aio.Channel
    generation: GenerationServiceAsyncStub
    cache: CacheServiceAsyncStub
    sessions: SessionServiceAsyncStub
    metadata: Metadata  # of every call


class AsyncPauses:
    """Where calls wait for their next attempt, until `close`."""

    def __init__(self) -> None:
        self._closed = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Raises Cancelled once it is closed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closed.wait()
                raise Cancelled(grpc.StatusCode.CANCELLED, "the call was cancelled")

    def close(self) -> None:
        """Nobody waits any more."""
        self._closed.set()


def open_async_lane(target: str, credentials: CallCredentials, number: int) -> AsyncLane:
    """Its channel connects at the first call."""
    if credentials.channel is None:
        channel = grpc.aio.insecure_channel(target, options(number))
    else:
        channel = grpc.aio.secure_channel(target, credentials.channel, options(number))
    return AsyncLane(
        channel,
        generation_pb2_grpc.GenerationServiceStub(channel),
        cache_pb2_grpc.CacheServiceStub(channel),
        session_pb2_grpc.SessionServiceStub(channel),
        credentials.metadata,
    )


def start_async_generate(
    lanes: Lanes[AsyncLane], request: generation_pb2.GenerateRequest, timeout_s: float | None
) -> AsyncGenerateCall:
    """One attempt."""
    lane, leave = lanes.take()
    try:
        call = lane.generation.Generate(request, timeout=timeout_s, metadata=lane.metadata)
    except BaseException:
        leave()
        raise
    call.add_done_callback(lambda _call: leave())
    return call

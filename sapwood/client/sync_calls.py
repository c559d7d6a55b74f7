"""One attempt of the synchronous client, and where the next one is waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import grpc

from sapwood.client.channel import options
from sapwood.client.credentials import CallCredentials, Metadata
from sapwood.client.errors import Cancelled
from sapwood.client.lanes import Lanes
from sapwood.v1 import cache_pb2_grpc, generation_pb2, generation_pb2_grpc, session_pb2_grpc


class SyncGenerateCall(Protocol):
    """What gRPC has for a stream that is read."""

    def __iter__(self) -> Iterator[generation_pb2.GenerateResponse]: ...
    def cancel(self) -> object:
        """Safe from any thread, and after the end."""


class SyncLane(NamedTuple):
    """A channel and the stubs on it."""

    channel: grpc.Channel
    generation: generation_pb2_grpc.GenerationServiceStub
    cache: cache_pb2_grpc.CacheServiceStub
    sessions: session_pb2_grpc.SessionServiceStub
    metadata: Metadata  # of every call


class SyncPauses:
    """Where the calls of one client wait for their next attempt, until it is closed."""

    def __init__(self) -> None:
        self._woken = threading.Condition()
        self._closed = False

    def wait(self, seconds: float, left: Callable[[], bool] = lambda: False) -> None:
        """Raises Cancelled once the client is closed or `left` is true, which `wake` tells."""
        with self._woken:
            if self._woken.wait_for(lambda: self._closed or left(), seconds):
                raise Cancelled(grpc.StatusCode.CANCELLED, "the call was cancelled")

    def wake(self) -> None:
        """Everybody looks whether they still wait."""
        with self._woken:
            self._woken.notify_all()

    def close(self) -> None:
        """Nobody waits any more."""
        self._closed = True
        self.wake()


def open_sync_lane(target: str, credentials: CallCredentials, number: int) -> SyncLane:
    """Its channel connects at the first call."""
    if credentials.channel is None:
        channel = grpc.insecure_channel(target, options(number))
    else:
        channel = grpc.secure_channel(target, credentials.channel, options(number))
    return SyncLane(
        channel,
        generation_pb2_grpc.GenerationServiceStub(channel),
        cache_pb2_grpc.CacheServiceStub(channel),
        session_pb2_grpc.SessionServiceStub(channel),
        credentials.metadata,
    )


def start_sync_generate(
    lanes: Lanes[SyncLane], request: generation_pb2.GenerateRequest, timeout_s: float | None
) -> SyncGenerateCall:
    """One attempt."""
    lane, leave = lanes.take()
    try:
        call = lane.generation.Generate(request, timeout=timeout_s, metadata=lane.metadata)
    except BaseException:
        leave()
        raise
    if not call.add_callback(leave):
        leave()
    return call

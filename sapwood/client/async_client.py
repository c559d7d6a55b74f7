"""The asynchronous client: the synchronous one with `await`, over grpc.aio.

- An AsyncClient belongs to the event loop it was made in. Works under asyncio and anyio's asyncio
  backend; grpc.aio knows no other.
- Cancelling the task that reads a stream, or read it last, cancels the stream. Cancelling a stream
  ends its reader with Cancelled, never with CancelledError: only tasks are cancelled with that.
- A stream that nobody refers to any more ends on the daemon too, whichever thread lets it go.
- What was refused with a time to retry, before anything of the answer came, is asked for again.
- Timeouts are gRPC deadlines in seconds and cover the whole call, queueing included.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc
from grpc_health.v1 import health_pb2

from sapwood.client import address, wire
from sapwood.client.async_calls import (
    AsyncLane,
    AsyncPauses,
    open_async_lane,
    start_async_generate,
)
from sapwood.client.async_stream import AsyncStream
from sapwood.client.channel import CALL_TIMEOUT_S, HEALTH_CHECK
from sapwood.client.clock import attempts_within, pause_s, timeout_s_of
from sapwood.client.credentials import CallCredentials, ConnectOptions
from sapwood.client.errors import Cancelled, SapwoodError, client_closed, translated
from sapwood.client.lanes import Lanes
from sapwood.client.operators import AsyncOperatorCalls
from sapwood.client.resuming import SESSION_TTL_S, Resuming
from sapwood.client.sessions import AsyncSessionCalls
from sapwood.client.typed import AsyncTypedCalls
from sapwood.client.values import (
    CacheStats,
    Conversation,
    GenerateOptions,
    Messages,
    Model,
    Prompt,
    TokenIds,
    TreeNode,
)
from sapwood.v1 import cache_pb2, generation_pb2

_Response = TypeVar("_Response")


class AsyncClient(AsyncOperatorCalls, AsyncTypedCalls, AsyncSessionCalls):
    """Connections to one daemon, made on first use and kept.

    target: `unix:PATH` or `HOST:PORT`; None looks where daemons listen (sapwood.client.address).
    options: a token, TLS, metadata (sapwood.client.credentials).
    """

    def __init__(self, target: str | None = None, **options: Unpack[ConnectOptions]) -> None:
        found = address.resolve(target, os.environ)
        credentials = CallCredentials(found, os.environ, **options)
        self.address = str(found)
        self._lanes = Lanes(partial(open_async_lane, found.target, credentials))
        self._pauses = AsyncPauses()
        self._streams: weakref.WeakSet[AsyncStream] = weakref.WeakSet()
        self._closed = False

    async def close(self) -> None:
        """Closes the connections. Open streams end with Cancelled, and so does every later call."""
        self._closed = True
        self._pauses.close()
        for stream in list(self._streams):
            stream._pauses.close()
        for lane in self._lanes.all:
            await lane.channel.close()

    @contextmanager
    def _calling(self) -> Iterator[None]:
        """Around whatever gRPC does for us: what it raises becomes ours.

        A call that ends while its task goes on is Cancelled, whoever ended it.
        """
        try:
            with translated():
                yield
        except (grpc.aio.UsageError, Cancelled):  # gRPC's says that the channel is closed
            if not self._closed:
                raise
            raise client_closed() from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            ended = Cancelled(grpc.StatusCode.CANCELLED, "the call was cancelled")
            raise (client_closed() if self._closed else ended) from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _unary(
        self,
        method: Callable[[AsyncLane], Callable[..., Awaitable[_Response]]],
        request: Any,
        timeout: float | None,
    ) -> _Response:
        """One answer to one request, refusals with a time to retry aside."""
        attempts = attempts_within(wire.deadline_s(timeout))
        while True:
            try:
                with self._calling(), self._lanes.lane() as lane:
                    timeout_s = timeout_s_of(attempts)
                    return await method(lane)(request, timeout=timeout_s, metadata=lane.metadata)
            except SapwoodError as refusal:
                if (wait_s := pause_s(attempts, refusal)) is None:
                    raise
            with self._calling():
                await self._pauses.wait(wait_s)

    def generate(
        self, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> AsyncStream:
        """Continues a prompt: text, token ids, or the messages of a conversation."""
        request = wire.generate_request(prompt, options)
        attempts = attempts_within(wire.deadline_s(timeout))
        own = bool(options.get("resumable")) and not request.session
        resuming = Resuming(request, own=own) if own or request.session else None
        start = partial(start_async_generate, self._lanes)
        opens = partial(self.create_session, ttl=SESSION_TTL_S, timeout=timeout) if own else None
        stream = AsyncStream(start, request, attempts, self._calling, resuming, opens)
        self._streams.add(stream)
        return stream

    async def tokenize(
        self,
        prompt: str | Messages | Conversation,
        *,
        timeout: float | None = CALL_TIMEOUT_S,
    ) -> list[int]:
        """The ids that `generate` would see for this prompt."""
        request = wire.tokenize_request(prompt)
        response = await self._unary(lambda lane: lane.generation.Tokenize, request, timeout)
        return list(response.token_ids)

    async def detokenize(
        self, token_ids: TokenIds, *, timeout: float | None = CALL_TIMEOUT_S
    ) -> str:
        """Text of ids; special tokens have none. Raises InvalidArgument for unknown ids."""
        request = wire.detokenize_request(token_ids)
        response = await self._unary(lambda lane: lane.generation.Detokenize, request, timeout)
        return response.text

    async def get_model(self, *, timeout: float | None = CALL_TIMEOUT_S) -> Model:
        """What the daemon has loaded. Waits while it loads, then raises Unavailable."""
        request = generation_pb2.GetModelRequest()
        response = await self._unary(lambda lane: lane.generation.GetModel, request, timeout)
        return wire.model(response)

    async def cache_stats(self, *, timeout: float | None = CALL_TIMEOUT_S) -> CacheStats:
        """What the prefix tree holds and memory is used for, between two steps."""
        request = cache_pb2.GetCacheStatsRequest()
        response = await self._unary(lambda lane: lane.cache.GetCacheStats, request, timeout)
        return wire.cache_stats(response)

    async def describe_tree(
        self, *, include_tokens: bool = False, timeout: float | None = CALL_TIMEOUT_S
    ) -> AsyncIterator[TreeNode]:
        """The nodes of the prefix tree, parents first. Tokens need an operator's permission."""
        request = wire.describe_tree_request(include_tokens)
        attempts = attempts_within(wire.deadline_s(timeout))
        begun = False
        while True:
            left_s = timeout_s_of(attempts)
            try:
                with self._calling(), self._lanes.lane() as lane:
                    call = lane.cache.DescribeTree(request, timeout=left_s, metadata=lane.metadata)
                    try:
                        async for response in call:
                            begun = True
                            yield wire.tree_node(response.node)
                        return
                    finally:
                        call.cancel()  # it would go on without a reader
            except SapwoodError as refusal:
                wait_s = None if begun else pause_s(attempts, refusal)
                if wait_s is None:
                    raise
            with self._calling():
                await self._pauses.wait(wait_s)

    async def is_serving(self, *, timeout: float | None = CALL_TIMEOUT_S) -> bool:
        """Whether the daemon takes requests. Raises Unavailable where none answers."""
        response = await self._unary(
            lambda lane: lane.channel.unary_unary(*HEALTH_CHECK),
            health_pb2.HealthCheckRequest(),
            timeout,
        )
        return response.status == health_pb2.HealthCheckResponse.SERVING

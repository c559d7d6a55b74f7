"""The asynchronous client: the synchronous one with `await`, over grpc.aio.

- An AsyncClient belongs to the event loop it was made in. Works under asyncio and anyio's asyncio
  backend; grpc.aio knows no other.
- Cancelling the task that reads a stream cancels the stream. Cancelling a stream ends its reader
  with Cancelled, never with CancelledError: only tasks are cancelled with that.
- Timeouts are gRPC deadlines in seconds and cover the whole call, queueing included.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Self, Unpack, cast

import grpc
from grpc_health.v1 import health_pb2

from sapwood.client import address, wire
from sapwood.client.channel import CALL_TIMEOUT_S, HEALTH_CHECK, RETRYING_OPTIONS
from sapwood.client.errors import Cancelled, translated
from sapwood.client.reply import ReplyBuilder
from sapwood.client.values import (
    CacheStats,
    Conversation,
    Event,
    GenerateOptions,
    Messages,
    Model,
    Prompt,
    Reply,
    TreeNode,
)
from sapwood.v1 import cache_pb2, cache_pb2_grpc, generation_pb2, generation_pb2_grpc

_GenerateCall = grpc.aio.UnaryStreamCall[
    generation_pb2.GenerateRequest, generation_pb2.GenerateResponse
]


class AsyncStream:
    """The events of one reply: an async iterator, and a context manager that cancels what is left.

    The daemon works on it from the moment `generate` returned, whether it is read or not.
    """

    def __init__(self, call: _GenerateCall) -> None:
        self._call = call
        self._builder = ReplyBuilder()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        # read(), not the call's own iterator: that one is a generator, and a reader that was
        # cancelled inside it would find it ended, as if the reply were complete.
        while (response := await self._read()) is not None:
            if (event := wire.event(response)) is not None:
                self._builder.add(event)
                return event
        raise StopAsyncIteration

    async def _read(self) -> generation_pb2.GenerateResponse | None:
        try:
            with translated():
                response = await self._call.read()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise Cancelled(grpc.StatusCode.CANCELLED, "the stream was cancelled") from None
        if response is grpc.aio.EOF:
            return None
        return cast("generation_pb2.GenerateResponse", response)

    def cancel(self) -> None:
        """Ends the reply; reading on raises Cancelled. Safe after the end."""
        self._call.cancel()

    async def collect(self) -> Reply:
        """Reads to the end and returns the whole reply, what was read before included."""
        async for _ in self:
            pass
        return self._builder.reply()

    async def text(self) -> str:
        """Reads to the end and returns the whole text."""
        return (await self.collect()).text

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()


class AsyncClient:
    """A connection to one daemon, made on first use and kept.

    target: `unix:PATH` or `HOST:PORT`; None looks where daemons listen (sapwood.client.address).
    """

    def __init__(self, target: str | None = None) -> None:
        self.address = address.resolve(target, os.environ)
        self._channel = grpc.aio.insecure_channel(self.address, RETRYING_OPTIONS)
        self._generation = generation_pb2_grpc.GenerationServiceStub(self._channel)
        self._cache = cache_pb2_grpc.CacheServiceStub(self._channel)

    async def close(self) -> None:
        """Closes the connection. Open streams end with Cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def generate(
        self, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> AsyncStream:
        """Continues a prompt: text, token ids, or the messages of a conversation."""
        request = wire.generate_request(prompt, options)
        return AsyncStream(self._generation.Generate(request, timeout=timeout))

    async def tokenize(
        self,
        prompt: str | Messages | Conversation,
        *,
        timeout: float | None = CALL_TIMEOUT_S,
    ) -> list[int]:
        """The ids that `generate` would see for this prompt."""
        request = wire.tokenize_request(prompt)
        with translated():
            return list((await self._generation.Tokenize(request, timeout=timeout)).token_ids)

    async def detokenize(
        self, token_ids: Sequence[int], *, timeout: float | None = CALL_TIMEOUT_S
    ) -> str:
        """Text of ids; special tokens have none. Raises InvalidArgument for unknown ids."""
        request = generation_pb2.DetokenizeRequest(token_ids=token_ids)
        with translated():
            return (await self._generation.Detokenize(request, timeout=timeout)).text

    async def get_model(self, *, timeout: float | None = CALL_TIMEOUT_S) -> Model:
        """What the daemon has loaded. Raises Unavailable while it loads."""
        request = generation_pb2.GetModelRequest()
        with translated():
            return wire.model(await self._generation.GetModel(request, timeout=timeout))

    async def cache_stats(self, *, timeout: float | None = CALL_TIMEOUT_S) -> CacheStats:
        """What the prefix tree holds and memory is used for, between two steps."""
        request = cache_pb2.GetCacheStatsRequest()
        with translated():
            return wire.cache_stats(await self._cache.GetCacheStats(request, timeout=timeout))

    async def describe_tree(
        self, *, include_tokens: bool = False, timeout: float | None = CALL_TIMEOUT_S
    ) -> AsyncIterator[TreeNode]:
        """The nodes of the prefix tree, parents first. Tokens need an operator's permission."""
        request = cache_pb2.DescribeTreeRequest(include_tokens=include_tokens)
        with translated():
            async for response in self._cache.DescribeTree(request, timeout=timeout):
                yield wire.tree_node(response.node)

    async def is_serving(self, *, timeout: float | None = CALL_TIMEOUT_S) -> bool:
        """Whether the daemon takes requests. Raises Unavailable where none answers."""
        check = self._channel.unary_unary(*HEALTH_CHECK)
        with translated():
            response = await check(health_pb2.HealthCheckRequest(), timeout=timeout)
        return response.status == health_pb2.HealthCheckResponse.SERVING

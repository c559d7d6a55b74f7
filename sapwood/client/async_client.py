"""The asynchronous client: the synchronous one with `await`, over grpc.aio.

- An AsyncClient belongs to the event loop it was made in. Works under asyncio and anyio's asyncio
  backend; grpc.aio knows no other.
- Cancelling the task that reads a stream, or read it last, cancels the stream. Cancelling a stream
  ends its reader with Cancelled, never with CancelledError: only tasks are cancelled with that.
- A stream that nobody refers to any more ends on the daemon too, whichever thread lets it go.
- Timeouts are gRPC deadlines in seconds and cover the whole call, queueing included.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Any, Self, Unpack, cast

import grpc
from grpc_health.v1 import health_pb2

from sapwood.client import address, wire
from sapwood.client.channel import CALL_TIMEOUT_S, HEALTH_CHECK, RETRYING_OPTIONS
from sapwood.client.errors import Calling, Cancelled, client_closed, translated
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
    TokenIds,
    TreeNode,
)
from sapwood.v1 import cache_pb2, cache_pb2_grpc, generation_pb2, generation_pb2_grpc

_GenerateCall = grpc.aio.UnaryStreamCall[
    generation_pb2.GenerateRequest, generation_pb2.GenerateResponse
]


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _reader_ended(stream: weakref.ref[AsyncStream], reader: asyncio.Task[Any]) -> None:
    if reader.cancelled() and (left := stream()) is not None:
        left._left_by(reader)


class AsyncStream:
    """The events of one reply: an async iterator, and a context manager that cancels what is left.

    The daemon works on it from the moment `generate` returned, whether it is read or not. Without
    `async with` it ends when the last reference goes, which an exception that is kept may hold.
    """

    def __init__(self, call: _GenerateCall, calling: Calling) -> None:
        self._call = call
        self._calling = calling
        self._loop = _running_loop()
        self._reader: weakref.ref[asyncio.Task[Any]] | None = None
        self._builder = ReplyBuilder()

    def __del__(self) -> None:
        # gRPC's own tasks and callbacks keep a call alive, so it does not end by itself. Only the
        # thread of a running loop may touch it; where no loop runs, any may.
        loop = self._loop
        with suppress(RuntimeError):  # the loop was closed, and its tasks with it
            if loop is not None and loop.is_running() and loop is not _running_loop():
                loop.call_soon_threadsafe(self._call.cancel)
            else:
                self._call.cancel()

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
        self._follow(asyncio.current_task())
        with self._calling():
            response = await self._call.read()
        if response is grpc.aio.EOF:
            return None
        return cast("generation_pb2.GenerateResponse", response)

    def _follow(self, reader: asyncio.Task[Any] | None) -> None:
        """A task cancelled between two reads ends the stream, though its traceback may hold it."""
        if reader is not None and (self._reader is None or self._reader() is not reader):
            # Weak both ways: the stream ends with its last reference, not with the next collection.
            self._reader = weakref.ref(reader)
            reader.add_done_callback(partial(_reader_ended, weakref.ref(self)))

    def _left_by(self, reader: asyncio.Task[Any]) -> None:
        if self._reader is not None and self._reader() is reader:
            self.cancel()

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
        found = address.resolve(target, os.environ)
        self.address = str(found)
        self._channel = grpc.aio.insecure_channel(found.target, RETRYING_OPTIONS)
        self._generation = generation_pb2_grpc.GenerationServiceStub(self._channel)
        self._cache = cache_pb2_grpc.CacheServiceStub(self._channel)
        self._closed = False

    async def close(self) -> None:
        """Closes the connection. Open streams end with Cancelled, and so does every later call."""
        self._closed = True
        await self._channel.close()

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

    def generate(
        self, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> AsyncStream:
        """Continues a prompt: text, token ids, or the messages of a conversation."""
        request = wire.generate_request(prompt, options)
        deadline_s = wire.deadline_s(timeout)
        with self._calling():
            return AsyncStream(
                self._generation.Generate(request, timeout=deadline_s), self._calling
            )

    async def tokenize(
        self,
        prompt: str | Messages | Conversation,
        *,
        timeout: float | None = CALL_TIMEOUT_S,
    ) -> list[int]:
        """The ids that `generate` would see for this prompt."""
        request = wire.tokenize_request(prompt)
        deadline_s = wire.deadline_s(timeout)
        with self._calling():
            return list((await self._generation.Tokenize(request, timeout=deadline_s)).token_ids)

    async def detokenize(
        self, token_ids: TokenIds, *, timeout: float | None = CALL_TIMEOUT_S
    ) -> str:
        """Text of ids; special tokens have none. Raises InvalidArgument for unknown ids."""
        request = wire.detokenize_request(token_ids)
        deadline_s = wire.deadline_s(timeout)
        with self._calling():
            return (await self._generation.Detokenize(request, timeout=deadline_s)).text

    async def get_model(self, *, timeout: float | None = CALL_TIMEOUT_S) -> Model:
        """What the daemon has loaded. Raises Unavailable while it loads."""
        request = generation_pb2.GetModelRequest()
        deadline_s = wire.deadline_s(timeout)
        with self._calling():
            return wire.model(await self._generation.GetModel(request, timeout=deadline_s))

    async def cache_stats(self, *, timeout: float | None = CALL_TIMEOUT_S) -> CacheStats:
        """What the prefix tree holds and memory is used for, between two steps."""
        request = cache_pb2.GetCacheStatsRequest()
        deadline_s = wire.deadline_s(timeout)
        with self._calling():
            return wire.cache_stats(await self._cache.GetCacheStats(request, timeout=deadline_s))

    async def describe_tree(
        self, *, include_tokens: bool = False, timeout: float | None = CALL_TIMEOUT_S
    ) -> AsyncIterator[TreeNode]:
        """The nodes of the prefix tree, parents first. Tokens need an operator's permission."""
        request = wire.describe_tree_request(include_tokens)
        deadline_s = wire.deadline_s(timeout)
        with self._calling():
            call = self._cache.DescribeTree(request, timeout=deadline_s)
            try:
                async for response in call:
                    yield wire.tree_node(response.node)
            finally:
                call.cancel()  # it would go on without a reader

    async def is_serving(self, *, timeout: float | None = CALL_TIMEOUT_S) -> bool:
        """Whether the daemon takes requests. Raises Unavailable where none answers."""
        check = self._channel.unary_unary(*HEALTH_CHECK)
        deadline_s = wire.deadline_s(timeout)
        with self._calling():
            response = await check(health_pb2.HealthCheckRequest(), timeout=deadline_s)
        return response.status == health_pb2.HealthCheckResponse.SERVING

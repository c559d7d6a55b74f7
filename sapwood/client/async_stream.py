"""The stream of the asynchronous client.

- Cancelling the task that reads a stream, or read it last, cancels the stream. Cancelling a stream
  ends its reader with Cancelled, never with CancelledError: only tasks are cancelled with that.
- A stream that nobody refers to any more ends on the daemon too, whichever thread lets it go.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Self, cast

import grpc

from sapwood.client import wire
from sapwood.client.async_calls import AsyncGenerateCall, AsyncPauses
from sapwood.client.attempts import Attempts
from sapwood.client.clock import pause_s, timeout_s_of
from sapwood.client.errors import Calling, SapwoodError
from sapwood.client.reply import ReplyBuilder
from sapwood.client.resuming import Resuming
from sapwood.client.values import Event, Reply, Session
from sapwood.v1 import generation_pb2


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

    The daemon works on it from the moment `generate` returned, whether it is read or not. A reply
    that was refused with a time to retry is asked for again where it is read, and one of a session
    whose connection broke is gone on with. One that is `resumable` without a session begins where
    it is read first. Without `async with` it ends when the last reference goes, which an exception
    that is kept may hold.
    """

    def __init__(
        self,
        start: Callable[[generation_pb2.GenerateRequest, float | None], AsyncGenerateCall],
        request: generation_pb2.GenerateRequest,
        attempts: Attempts,
        calling: Calling,
        resuming: Resuming | None = None,
        opens: Callable[[], Awaitable[Session]] | None = None,
    ) -> None:
        """opens: makes the session of the request; then it begins where it is read first."""
        self._start = start
        self._request = request
        self._resuming = resuming
        self._opens = opens
        self._attempts = attempts
        self._calling = calling
        self._pauses = AsyncPauses()
        self._begun = False
        self._call = self._started() if opens is None else None
        self._loop = _running_loop()
        self._reader: weakref.ref[asyncio.Task[Any]] | None = None
        self._builder = ReplyBuilder()

    def _started(self) -> AsyncGenerateCall:
        with self._calling():
            return self._start(self._request, timeout_s_of(self._attempts))

    async def _opened(self) -> AsyncGenerateCall:
        assert self._opens is not None, "a stream that began already"
        self._request.session = (await self._opens()).name
        return self._started()

    def __del__(self) -> None:
        if (call := getattr(self, "_call", None)) is None:
            return  # it was not, or could not be started
        # gRPC's own tasks and callbacks keep a call alive, so it does not end by itself. Only the
        # thread of a running loop may touch it; where no loop runs, any may.
        loop = self._loop
        with suppress(RuntimeError):  # the loop was closed, and its tasks with it
            if loop is not None and loop.is_running() and loop is not _running_loop():
                loop.call_soon_threadsafe(call.cancel)
            else:
                call.cancel()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        # read(), not the call's own iterator: that one is a generator, and a reader that was
        # cancelled inside it would find it ended, as if the reply were complete.
        while (response := await self._read()) is not None:
            event = wire.event(response)
            if event is not None and self._builder.takes(event):
                self._builder.add(event)
                return event
        raise StopAsyncIteration

    async def _read(self) -> generation_pb2.GenerateResponse | None:
        self._follow(asyncio.current_task())
        while True:
            call = self._call = self._call or await self._opened()
            try:
                with self._calling():
                    response = await call.read()
                break
            except SapwoodError as error:
                if self._resuming and self._builder.whole:
                    return None  # it was cut behind its last event
                if (wait_s := self._wait_s(error)) is None:
                    raise
            with self._calling():
                await self._pauses.wait(wait_s)
            self._call = self._started()
        self._begun = True
        if response is grpc.aio.EOF:
            return None
        return cast("generation_pb2.GenerateResponse", response)

    def _wait_s(self, error: SapwoodError) -> float | None:
        """How long until the next attempt, with the request as it is then; None for none."""
        if not self._begun and (wait_s := pause_s(self._attempts, error)) is not None:
            return wait_s
        following = self._resuming and self._resuming.after(error, self._builder)
        if not following:
            return None
        (self._request, wait_s), self._begun = following, False
        return wait_s

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
        self._pauses.close()
        if self._call is not None:
            self._call.cancel()

    async def collect(self) -> Reply:
        """Reads to the end and returns the whole reply, what was read before included.

        Of several candidates the first.
        """
        return (await self.collect_all())[0]

    async def collect_all(self) -> tuple[Reply, ...]:
        """The same with the replies of all candidates."""
        async for _ in self:
            pass
        return self._builder.replies()

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

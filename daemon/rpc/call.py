"""One RPC as its behaviour sees it.

- Headers go before the first message, as an operation of their own that no cancel interrupts.
  grpc.aio would send them with the first message and not know that it did where that write is
  cancelled: `abort` then sends them again, the core refuses the whole batch, and the client hears
  no status before its deadline.
- They do not go before there is a message: what was refused until then is free to be retried.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, NoReturn

import anyio
import grpc
from google.protobuf.message import Message

from sapwood.daemon.rpc.callers import caller_of_call
from sapwood.daemon.rpc.principals import Principal
from sapwood.daemon.rpc.refusals import slow_reader
from sapwood.daemon.telemetry.calls import REQUEST_ID, record_of_call

Context = grpc.aio.ServicerContext[Any, Any]


class Call:
    """The answering side of a context; lives as long as its RPC."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._headers: asyncio.Task[None] | None = None
        self._caller = caller_of_call()
        self.record = record_of_call()

    @property
    def principal(self) -> Principal:
        """Who calls. Not of methods that everybody may call."""
        assert self._caller is not None, "nobody was asked who calls"
        return self._caller.principal

    def allowed(self) -> AbstractContextManager[None]:
        """For as long as the caller may call. Raises Refused where that ends before the call."""
        return nullcontext() if self._caller is None else self._caller.allowed()

    def time_remaining(self) -> float | None:
        """Seconds until the client's deadline; None without one."""
        return self._context.time_remaining()

    async def write(self, message: Message) -> None:
        """Returns once gRPC has taken the message, which flow control may delay without end."""
        if self._headers is None:
            self._headers = asyncio.ensure_future(self._context.send_initial_metadata(()))
            # Where they fail nobody may be left to hear of it.
            self._headers.add_done_callback(lambda sent: sent.cancelled() or sent.exception())
        await asyncio.shield(self._headers)
        await self._context.write(message)

    async def write_in_time(self, message: Message, write_s_max: float) -> None:
        """Raises SLOW_READER where the message is not taken within `write_s_max`."""
        with anyio.move_on_after(write_s_max) as scope:
            await self.write(message)
        if scope.cancelled_caught:
            raise slow_reader()

    async def abort(self, status: grpc.Status) -> NoReturn:
        """End the RPC with this status; never returns."""
        if self._headers is not None:
            with suppress(grpc.aio.InternalError):  # the client went: abort says so itself
                await self._headers
        await end_with(self._context, status)


async def end_with(context: Context, status: grpc.Status) -> NoReturn:
    """End the RPC with this status and its request's id, which abort takes out of the trailers."""
    trailers = (*status.trailing_metadata, (REQUEST_ID, record_of_call().id))
    await context.abort(status.code, status.details, trailers)
    raise AssertionError("abort returned")

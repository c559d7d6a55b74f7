"""One RPC as its behaviour sees it.

- Headers go before the first message, as an operation of their own that no cancel interrupts.
  grpc.aio would send them with the first message and not know that it did where that write is
  cancelled: `abort` then sends them again, the core refuses the whole batch, and the client hears
  no status before its deadline.
- They do not go before there is a message: what was refused until then is free to be retried.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, NoReturn

import anyio
import grpc
from google.protobuf.message import Message

from sapwood.daemon.rpc.refusals import slow_reader

Context = grpc.aio.ServicerContext[Any, Any]


class Call:
    """The answering side of a context; lives as long as its RPC."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._headers: asyncio.Task[None] | None = None

    def time_remaining(self) -> float | None:
        """Seconds until the client's deadline; None without one."""
        return self._context.time_remaining()

    @property
    def peer(self) -> str:
        """Who calls, as gRPC writes it: a kind of address, and the address."""
        return self._context.peer()

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
        await self._context.abort_with_status(status)
        raise AssertionError("abort_with_status returned")

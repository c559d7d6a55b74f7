"""What an RPC passes before its behaviour: how many are open, and a large request's parsing.

- The bound here lies below those of the transport, so that whoever is refused learns why and when
  to come again, and is counted. gRPC's own, of RPCs and of streams on a connection, are the last
  resort: they refuse without a reason.
- Large requests are parsed one at a time, and the event loop turns between two: what a step
  emitted leaves, however many of them have come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from google.protobuf.message import Message

from sapwood.daemon.rpc.refusals import RETRY_AFTER_S
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.reasons import Reason, Refused


@dataclass(frozen=True, slots=True)
class Malformed:
    """Request bytes that are not the method's message, or more of it than is taken."""

    problem: str = "the bytes of the request are not its message"


@dataclass(frozen=True, slots=True)
class Unparsed:
    """A large request, before it becomes objects."""

    parse: Callable[[], Message | Malformed]


def _nobody(_method: str, _reason: Reason) -> None:
    """Where refusals are counted by nobody."""


class Entrance:
    """For the services that share one bound. `refused` is told who did not pass, and why."""

    def __init__(
        self, limits: Limits, rpcs_max: int, refused: Callable[[str, Reason], None] = _nobody
    ) -> None:
        self.limits = limits
        self._rpcs_max = rpcs_max
        self._refused = refused
        self._open = 0
        self._parsing = asyncio.Lock()

    @contextmanager
    def place(self, method: str) -> Iterator[None]:
        """For as long as the RPC is open. Raises Refused where too many are."""
        if self._open >= self._rpcs_max:
            self._refused(method, Reason.QUEUE_FULL)
            problem = f"{self._rpcs_max} requests are open already"
            raise Refused(Reason.QUEUE_FULL, problem, retry_after_s=RETRY_AFTER_S)
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    async def message(self, request: Message | Malformed | Unparsed, method: str) -> Message:
        """Raises Refused for what is no message of the method's."""
        if isinstance(request, Unparsed):
            async with self._parsing:
                await asyncio.sleep(0)
                request = request.parse()
        if isinstance(request, Malformed):
            self._refused(method, Reason.BAD_REQUEST)
            raise Refused(Reason.BAD_REQUEST, request.problem)
        return request

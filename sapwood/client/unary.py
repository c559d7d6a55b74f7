"""What groups of calls (operators.py, sessions.py) want of the client that they are mixed into."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from sapwood.client.async_calls import AsyncLane
from sapwood.client.sync_calls import SyncLane

_Response = TypeVar("_Response")


class Unary(Protocol):
    """A client that blocks."""

    def _unary(
        self,
        method: Callable[[SyncLane], Callable[..., _Response]],
        request: Any,
        timeout: float | None,
    ) -> _Response: ...


class AsyncUnary(Protocol):
    """One that is awaited."""

    async def _unary(
        self,
        method: Callable[[AsyncLane], Callable[..., Awaitable[_Response]]],
        request: Any,
        timeout: float | None,
    ) -> _Response: ...

"""What operators ask of the prefix tree, for both clients: pins, and what is taken out of it.

- A prompt is what it is for `generate`. A prefix serves every prompt that begins with it, of the
  principal that pins it and of its pool.
- Conversations are cut into tokens with the beginning of a reply behind them; a pin bears with what
  parts from it in its last tokens, so the system message alone can be pinned.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from sapwood.client import wire
from sapwood.client.async_calls import AsyncLane
from sapwood.client.channel import CALL_TIMEOUT_S
from sapwood.client.sync_calls import SyncLane
from sapwood.client.values import Freed, Pin, Prompt
from sapwood.v1 import cache_pb2

_Response = TypeVar("_Response")


class _Unary(Protocol):
    def _unary(
        self,
        method: Callable[[SyncLane], Callable[..., _Response]],
        request: Any,
        timeout: float | None,
    ) -> _Response: ...


class _AsyncUnary(Protocol):
    async def _unary(
        self,
        method: Callable[[AsyncLane], Callable[..., Awaitable[_Response]]],
        request: Any,
        timeout: float | None,
    ) -> _Response: ...


class OperatorCalls:
    """Of the synchronous client."""

    def pin_prefix(
        self: _Unary, prompt: Prompt, *, ttl: float | None = None, timeout: float | None = None
    ) -> Pin:
        """Computes a prefix if need be and keeps it, for `ttl` seconds or until it is unpinned."""
        request = wire.pin_prefix_request(prompt, ttl)
        response = self._unary(lambda lane: lane.cache.PinPrefix, request, timeout)
        return wire.pinned_prefix(response.pin)

    def list_pins(self: _Unary, *, timeout: float | None = CALL_TIMEOUT_S) -> list[Pin]:
        """What is pinned, oldest first."""
        found: list[Pin] = []
        request = cache_pb2.ListPinsRequest()
        while True:
            response = self._unary(lambda lane: lane.cache.ListPins, request, timeout)
            found += map(wire.pinned_prefix, response.pins)
            if not response.next_page_token:
                return found
            request = cache_pb2.ListPinsRequest(page_token=response.next_page_token)

    def unpin_prefix(self: _Unary, pin_id: str, *, timeout: float | None = CALL_TIMEOUT_S) -> None:
        """Gives a pin back to ordinary eviction. Raises NotFound where there is none."""
        request = wire.unpin_prefix_request(pin_id)
        self._unary(lambda lane: lane.cache.UnpinPrefix, request, timeout)

    def evict_prefix(
        self: _Unary, prompt: Prompt, *, timeout: float | None = CALL_TIMEOUT_S
    ) -> Freed:
        """Evicts all that begins with a prefix, except what is pinned."""
        request = wire.evict_prefix_request(prompt)
        return wire.freed(self._unary(lambda lane: lane.cache.EvictPrefix, request, timeout))

    def clear_cache(self: _Unary, *, timeout: float | None = CALL_TIMEOUT_S) -> Freed:
        """Evicts everything, except what is pinned."""
        request = cache_pb2.ClearCacheRequest()
        return wire.freed(self._unary(lambda lane: lane.cache.ClearCache, request, timeout))


class AsyncOperatorCalls:
    """The same of the asynchronous client."""

    async def pin_prefix(
        self: _AsyncUnary, prompt: Prompt, *, ttl: float | None = None, timeout: float | None = None
    ) -> Pin:
        """Computes a prefix if need be and keeps it, for `ttl` seconds or until it is unpinned."""
        request = wire.pin_prefix_request(prompt, ttl)
        response = await self._unary(lambda lane: lane.cache.PinPrefix, request, timeout)
        return wire.pinned_prefix(response.pin)

    async def list_pins(self: _AsyncUnary, *, timeout: float | None = CALL_TIMEOUT_S) -> list[Pin]:
        """What is pinned, oldest first."""
        found: list[Pin] = []
        request = cache_pb2.ListPinsRequest()
        while True:
            response = await self._unary(lambda lane: lane.cache.ListPins, request, timeout)
            found += map(wire.pinned_prefix, response.pins)
            if not response.next_page_token:
                return found
            request = cache_pb2.ListPinsRequest(page_token=response.next_page_token)

    async def unpin_prefix(
        self: _AsyncUnary, pin_id: str, *, timeout: float | None = CALL_TIMEOUT_S
    ) -> None:
        """Gives a pin back to ordinary eviction. Raises NotFound where there is none."""
        request = wire.unpin_prefix_request(pin_id)
        await self._unary(lambda lane: lane.cache.UnpinPrefix, request, timeout)

    async def evict_prefix(
        self: _AsyncUnary, prompt: Prompt, *, timeout: float | None = CALL_TIMEOUT_S
    ) -> Freed:
        """Evicts all that begins with a prefix, except what is pinned."""
        request = wire.evict_prefix_request(prompt)
        response = await self._unary(lambda lane: lane.cache.EvictPrefix, request, timeout)
        return wire.freed(response)

    async def clear_cache(self: _AsyncUnary, *, timeout: float | None = CALL_TIMEOUT_S) -> Freed:
        """Evicts everything, except what is pinned."""
        request = cache_pb2.ClearCacheRequest()
        response = await self._unary(lambda lane: lane.cache.ClearCache, request, timeout)
        return wire.freed(response)

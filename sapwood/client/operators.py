"""What operators ask of the prefix tree, for both clients: pins, and what is taken out of it.

- A prompt is what it is for `generate`. A prefix serves every prompt that begins with it, of the
  principal that pins it and of its pool.
- Conversations are cut into tokens with the beginning of a reply behind them; a pin bears with what
  parts from it in its last tokens, so the system message alone can be pinned.
"""

from __future__ import annotations

from sapwood.client import wire
from sapwood.client.channel import CALL_TIMEOUT_S
from sapwood.client.unary import AsyncUnary, Unary
from sapwood.client.values import Freed, Pin, Prompt
from sapwood.v1 import cache_pb2


class OperatorCalls:
    """Of the synchronous client."""

    def pin_prefix(
        self: Unary, prompt: Prompt, *, ttl: float | None = None, timeout: float | None = None
    ) -> Pin:
        """Computes a prefix if need be and keeps it, for `ttl` seconds or until it is unpinned."""
        request = wire.pin_prefix_request(prompt, ttl)
        response = self._unary(lambda lane: lane.cache.PinPrefix, request, timeout)
        return wire.pinned_prefix(response.pin)

    def list_pins(self: Unary, *, timeout: float | None = CALL_TIMEOUT_S) -> list[Pin]:
        """What is pinned, oldest first."""
        found: list[Pin] = []
        request = cache_pb2.ListPinsRequest()
        while True:
            response = self._unary(lambda lane: lane.cache.ListPins, request, timeout)
            found += map(wire.pinned_prefix, response.pins)
            if not response.next_page_token:
                return found
            request = cache_pb2.ListPinsRequest(page_token=response.next_page_token)

    def unpin_prefix(self: Unary, pin_id: str, *, timeout: float | None = CALL_TIMEOUT_S) -> None:
        """Gives a pin back to ordinary eviction. Raises NotFound where there is none."""
        request = wire.unpin_prefix_request(pin_id)
        self._unary(lambda lane: lane.cache.UnpinPrefix, request, timeout)

    def evict_prefix(
        self: Unary, prompt: Prompt, *, timeout: float | None = CALL_TIMEOUT_S
    ) -> Freed:
        """Evicts all that begins with a prefix, except what is pinned."""
        request = wire.evict_prefix_request(prompt)
        return wire.freed(self._unary(lambda lane: lane.cache.EvictPrefix, request, timeout))

    def clear_cache(self: Unary, *, timeout: float | None = CALL_TIMEOUT_S) -> Freed:
        """Evicts everything, except what is pinned."""
        request = cache_pb2.ClearCacheRequest()
        return wire.freed(self._unary(lambda lane: lane.cache.ClearCache, request, timeout))


class AsyncOperatorCalls:
    """The same of the asynchronous client."""

    async def pin_prefix(
        self: AsyncUnary, prompt: Prompt, *, ttl: float | None = None, timeout: float | None = None
    ) -> Pin:
        """Computes a prefix if need be and keeps it, for `ttl` seconds or until it is unpinned."""
        request = wire.pin_prefix_request(prompt, ttl)
        response = await self._unary(lambda lane: lane.cache.PinPrefix, request, timeout)
        return wire.pinned_prefix(response.pin)

    async def list_pins(self: AsyncUnary, *, timeout: float | None = CALL_TIMEOUT_S) -> list[Pin]:
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
        self: AsyncUnary, pin_id: str, *, timeout: float | None = CALL_TIMEOUT_S
    ) -> None:
        """Gives a pin back to ordinary eviction. Raises NotFound where there is none."""
        request = wire.unpin_prefix_request(pin_id)
        await self._unary(lambda lane: lane.cache.UnpinPrefix, request, timeout)

    async def evict_prefix(
        self: AsyncUnary, prompt: Prompt, *, timeout: float | None = CALL_TIMEOUT_S
    ) -> Freed:
        """Evicts all that begins with a prefix, except what is pinned."""
        request = wire.evict_prefix_request(prompt)
        response = await self._unary(lambda lane: lane.cache.EvictPrefix, request, timeout)
        return wire.freed(response)

    async def clear_cache(self: AsyncUnary, *, timeout: float | None = CALL_TIMEOUT_S) -> Freed:
        """Evicts everything, except what is pinned."""
        request = cache_pb2.ClearCacheRequest()
        response = await self._unary(lambda lane: lane.cache.ClearCache, request, timeout)
        return wire.freed(response)

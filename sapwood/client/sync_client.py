"""The synchronous client.

- A Client may be used by many threads at once; a Stream by one, except for `cancel`.
- Timeouts are gRPC deadlines in seconds and cover the whole call, queueing included.
- Every RPC raises SapwoodError and nothing else of gRPC's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, Self, Unpack

import grpc
from grpc_health.v1 import health_pb2

from sapwood.client import address, wire
from sapwood.client.channel import CALL_TIMEOUT_S, HEALTH_CHECK, OPTIONS
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


class _Call(Protocol):
    def __iter__(self) -> Iterator[generation_pb2.GenerateResponse]: ...
    def cancel(self) -> object: ...


class Stream:
    """The events of one reply: an iterator, and a context manager that cancels what is left.

    The daemon works on it from the moment `generate` returned, whether it is read or not.
    """

    def __init__(self, call: _Call, calling: Calling) -> None:
        self._call = call
        self._calling = calling
        self._builder = ReplyBuilder()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        with self._calling():
            for response in self._call:
                if (event := wire.event(response)) is not None:
                    self._builder.add(event)
                    return event
        raise StopIteration

    def cancel(self) -> None:
        """Ends the reply; reading on raises Cancelled. Safe from any thread, and after the end."""
        self._call.cancel()

    def collect(self) -> Reply:
        """Reads to the end and returns the whole reply, what was read before included."""
        for _ in self:
            pass
        return self._builder.reply()

    def text(self) -> str:
        """Reads to the end and returns the whole text."""
        return self.collect().text

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()


class Client:
    """A connection to one daemon, made on first use and kept.

    target: `unix:PATH` or `HOST:PORT`; None looks where daemons listen (sapwood.client.address).
    """

    def __init__(self, target: str | None = None) -> None:
        found = address.resolve(target, os.environ)
        self.address = str(found)
        self._channel = grpc.insecure_channel(found.target, OPTIONS)
        self._generation = generation_pb2_grpc.GenerationServiceStub(self._channel)
        self._cache = cache_pb2_grpc.CacheServiceStub(self._channel)
        self._closed = False

    def close(self) -> None:
        """Closes the connection. Open streams end with Cancelled, and so does every later call."""
        self._closed = True
        self._channel.close()

    @contextmanager
    def _calling(self) -> Iterator[None]:
        """Around whatever gRPC does for us: what it raises becomes ours."""
        try:
            with translated():
                yield
        except (ValueError, Cancelled):  # gRPC's ValueError says that the channel is closed
            if not self._closed:
                raise
            raise client_closed() from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def generate(
        self, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> Stream:
        """Continues a prompt: text, token ids, or the messages of a conversation."""
        request = wire.generate_request(prompt, options)
        deadline_s = wire.deadline_s(timeout)
        with self._calling():
            return Stream(self._generation.Generate(request, timeout=deadline_s), self._calling)

    def tokenize(
        self,
        prompt: str | Messages | Conversation,
        *,
        timeout: float | None = CALL_TIMEOUT_S,
    ) -> list[int]:
        """The ids that `generate` would see for this prompt."""
        request = wire.tokenize_request(prompt)
        deadline_s = wire.deadline_s(timeout)
        with self._calling():
            return list(self._generation.Tokenize(request, timeout=deadline_s).token_ids)

    def detokenize(self, token_ids: TokenIds, *, timeout: float | None = CALL_TIMEOUT_S) -> str:
        """Text of ids; special tokens have none. Raises InvalidArgument for unknown ids."""
        request = wire.detokenize_request(token_ids)
        deadline_s = wire.deadline_s(timeout)
        with self._calling():
            return self._generation.Detokenize(request, timeout=deadline_s).text

    def get_model(self, *, timeout: float | None = CALL_TIMEOUT_S) -> Model:
        """What the daemon has loaded. Raises Unavailable while it loads."""
        request = generation_pb2.GetModelRequest()
        deadline_s = wire.deadline_s(timeout)
        with self._calling():
            return wire.model(self._generation.GetModel(request, timeout=deadline_s))

    def cache_stats(self, *, timeout: float | None = CALL_TIMEOUT_S) -> CacheStats:
        """What the prefix tree holds and memory is used for, between two steps."""
        request = cache_pb2.GetCacheStatsRequest()
        deadline_s = wire.deadline_s(timeout)
        with self._calling():
            return wire.cache_stats(self._cache.GetCacheStats(request, timeout=deadline_s))

    def describe_tree(
        self, *, include_tokens: bool = False, timeout: float | None = CALL_TIMEOUT_S
    ) -> Iterator[TreeNode]:
        """The nodes of the prefix tree, parents first. Tokens need an operator's permission."""
        request = wire.describe_tree_request(include_tokens)
        deadline_s = wire.deadline_s(timeout)
        with self._calling():
            for response in self._cache.DescribeTree(request, timeout=deadline_s):
                yield wire.tree_node(response.node)

    def is_serving(self, *, timeout: float | None = CALL_TIMEOUT_S) -> bool:
        """Whether the daemon takes requests. Raises Unavailable where none answers."""
        check = self._channel.unary_unary(*HEALTH_CHECK)
        deadline_s = wire.deadline_s(timeout)
        with self._calling():
            response = check(health_pb2.HealthCheckRequest(), timeout=deadline_s)
        return response.status == health_pb2.HealthCheckResponse.SERVING

"""The synchronous client.

- A Client may be used by many threads at once; a Stream by one, except for `cancel`.
- Timeouts are gRPC deadlines in seconds and cover the whole call, queueing included.
- What was refused with a time to retry, before anything of the answer came, is asked for again.
- Every RPC raises SapwoodError and nothing else of gRPC's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from grpc_health.v1 import health_pb2

from sapwood.client import address, wire
from sapwood.client.attempts import Attempts
from sapwood.client.channel import CALL_TIMEOUT_S, HEALTH_CHECK
from sapwood.client.clock import attempts_within, pause_s, timeout_s_of
from sapwood.client.credentials import CallCredentials, ConnectOptions
from sapwood.client.errors import Calling, Cancelled, SapwoodError, client_closed, translated
from sapwood.client.lanes import Lanes
from sapwood.client.operators import OperatorCalls
from sapwood.client.reply import ReplyBuilder
from sapwood.client.resuming import SESSION_TTL_S, Resuming
from sapwood.client.sessions import SessionCalls
from sapwood.client.sync_calls import (
    SyncGenerateCall,
    SyncLane,
    SyncPauses,
    open_sync_lane,
    start_sync_generate,
)
from sapwood.client.typed import TypedCalls
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
from sapwood.v1 import cache_pb2, generation_pb2

_Response = TypeVar("_Response")


class Stream:
    """The events of one reply: an iterator, and a context manager that cancels what is left.

    The daemon works on it from the moment `generate` returned, whether it is read or not. A reply
    that was refused with a time to retry is asked for again where it is read, and one of a session
    whose connection broke is gone on with.
    """

    def __init__(
        self,
        start: Callable[[generation_pb2.GenerateRequest, float | None], SyncGenerateCall],
        request: generation_pb2.GenerateRequest,
        attempts: Attempts,
        calling: Calling,
        pauses: SyncPauses,
        resuming: Resuming | None = None,
    ) -> None:
        self._start = start
        self._request = request
        self._resuming = resuming
        self._attempts = attempts
        self._calling = calling
        self._pauses = pauses
        self._builder = ReplyBuilder()
        self._begun = False
        self._cancelled = False
        self._call = self._started()

    def _started(self) -> SyncGenerateCall:
        with self._calling():
            return self._start(self._request, timeout_s_of(self._attempts))

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        while True:
            try:
                return self._next()
            except SapwoodError as error:
                if self._resuming and self._builder.whole:
                    raise StopIteration from None  # it was cut behind its last event
                if (wait_s := self._wait_s(error)) is None:
                    raise
            self._start_again(wait_s)

    def _wait_s(self, error: SapwoodError) -> float | None:
        """How long until the next attempt, with the request as it is then; None for none."""
        if not self._begun and (wait_s := pause_s(self._attempts, error)) is not None:
            return wait_s
        following = self._resuming and self._resuming.after(error, self._builder)
        if not following or self._cancelled:
            return None
        (self._request, wait_s), self._begun = following, False
        return wait_s

    def _next(self) -> Event:
        with self._calling():
            for response in self._call:
                self._begun = True
                event = wire.event(response)
                if event is not None and self._builder.takes(event):
                    self._builder.add(event)
                    return event
        raise StopIteration

    def _start_again(self, wait_s: float) -> None:
        with self._calling():
            self._pauses.wait(wait_s, lambda: self._cancelled)
        self._call = self._started()
        if self._cancelled:  # between the two
            self._call.cancel()

    def cancel(self) -> None:
        """Ends the reply; reading on raises Cancelled. Safe from any thread, and after the end."""
        self._cancelled = True
        self._call.cancel()
        self._pauses.wake()

    def collect(self) -> Reply:
        """Reads to the end and returns the whole reply, what was read before included.

        Of several candidates the first.
        """
        return self.collect_all()[0]

    def collect_all(self) -> tuple[Reply, ...]:
        """The same with the replies of all candidates."""
        for _ in self:
            pass
        return self._builder.replies()

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


class Client(OperatorCalls, TypedCalls, SessionCalls):
    """Connections to one daemon, made on first use and kept.

    target: `unix:PATH` or `HOST:PORT`; None looks where daemons listen (sapwood.client.address).
    options: a token, TLS, metadata (sapwood.client.credentials).
    """

    def __init__(self, target: str | None = None, **options: Unpack[ConnectOptions]) -> None:
        found = address.resolve(target, os.environ)
        credentials = CallCredentials(found, os.environ, **options)
        self.address = str(found)
        self._lanes = Lanes(partial(open_sync_lane, found.target, credentials))
        self._pauses = SyncPauses()
        self._closed = False

    def close(self) -> None:
        """Closes the connections. Open streams end with Cancelled, and so does every later call."""
        self._closed = True
        self._pauses.close()
        for lane in self._lanes.all:
            lane.channel.close()

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

    def _unary(
        self,
        method: Callable[[SyncLane], Callable[..., _Response]],
        request: Any,
        timeout: float | None,
    ) -> _Response:
        """One answer to one request, refusals with a time to retry aside."""
        attempts = attempts_within(wire.deadline_s(timeout))
        while True:
            try:
                with self._calling(), self._lanes.lane() as lane:
                    timeout_s = timeout_s_of(attempts)
                    return method(lane)(request, timeout=timeout_s, metadata=lane.metadata)
            except SapwoodError as refusal:
                if (wait_s := pause_s(attempts, refusal)) is None:
                    raise
            with self._calling():
                self._pauses.wait(wait_s)

    def generate(
        self, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> Stream:
        """Continues a prompt: text, token ids, or the messages of a conversation."""
        request = wire.generate_request(prompt, options)
        attempts = attempts_within(wire.deadline_s(timeout))
        own = bool(options.get("resumable")) and not request.session
        if own:
            request.session = self.create_session(ttl=SESSION_TTL_S, timeout=timeout).name
        resuming = Resuming(request, own=own) if request.session else None
        start = partial(start_sync_generate, self._lanes)
        return Stream(start, request, attempts, self._calling, self._pauses, resuming)

    def tokenize(
        self,
        prompt: str | Messages | Conversation,
        *,
        timeout: float | None = CALL_TIMEOUT_S,
    ) -> list[int]:
        """The ids that `generate` would see for this prompt."""
        request = wire.tokenize_request(prompt)
        response = self._unary(lambda lane: lane.generation.Tokenize, request, timeout)
        return list(response.token_ids)

    def detokenize(self, token_ids: TokenIds, *, timeout: float | None = CALL_TIMEOUT_S) -> str:
        """Text of ids; special tokens have none. Raises InvalidArgument for unknown ids."""
        request = wire.detokenize_request(token_ids)
        return self._unary(lambda lane: lane.generation.Detokenize, request, timeout).text

    def get_model(self, *, timeout: float | None = CALL_TIMEOUT_S) -> Model:
        """What the daemon has loaded. Waits while it loads, then raises Unavailable."""
        request = generation_pb2.GetModelRequest()
        return wire.model(self._unary(lambda lane: lane.generation.GetModel, request, timeout))

    def cache_stats(self, *, timeout: float | None = CALL_TIMEOUT_S) -> CacheStats:
        """What the prefix tree holds and memory is used for, between two steps."""
        request = cache_pb2.GetCacheStatsRequest()
        response = self._unary(lambda lane: lane.cache.GetCacheStats, request, timeout)
        return wire.cache_stats(response)

    def describe_tree(
        self, *, include_tokens: bool = False, timeout: float | None = CALL_TIMEOUT_S
    ) -> Iterator[TreeNode]:
        """The nodes of the prefix tree, parents first. Tokens need an operator's permission."""
        request = wire.describe_tree_request(include_tokens)
        attempts = attempts_within(wire.deadline_s(timeout))
        begun = False
        while True:
            left_s = timeout_s_of(attempts)
            try:
                with self._calling(), self._lanes.lane() as lane:
                    for response in lane.cache.DescribeTree(
                        request, timeout=left_s, metadata=lane.metadata
                    ):
                        begun = True
                        yield wire.tree_node(response.node)
                    return
            except SapwoodError as refusal:
                wait_s = None if begun else pause_s(attempts, refusal)
                if wait_s is None:
                    raise
            with self._calling():
                self._pauses.wait(wait_s)

    def is_serving(self, *, timeout: float | None = CALL_TIMEOUT_S) -> bool:
        """Whether the daemon takes requests. Raises Unavailable where none answers."""
        response = self._unary(
            lambda lane: lane.channel.unary_unary(*HEALTH_CHECK),
            health_pb2.HealthCheckRequest(),
            timeout,
        )
        return response.status == health_pb2.HealthCheckResponse.SERVING

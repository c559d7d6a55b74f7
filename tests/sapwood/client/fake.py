"""A daemon that plays a script over real sockets: what the client is tested against.

- `reply` is called once per Generate with the request and its context, and yields the responses.
- What the clients sent is kept in `requests`, in order of arrival.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Never, TypeVar

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer
from grpc_status import rpc_status

import sapwood
from sapwood.v1 import (
    cache_pb2,
    cache_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    model_pb2,
    session_pb2_grpc,
)
from tests.sapwood.client.fake_sessions import FakeSessions

T = TypeVar("T")
Request = generation_pb2.GenerateRequest
Responses = Iterator[generation_pb2.GenerateResponse]
Script = Callable[[Request, grpc.ServicerContext], Responses]


def prefill(cached: int, processed: int, prompt: int) -> generation_pb2.GenerateResponse:
    return generation_pb2.GenerateResponse(
        prefill=generation_pb2.Prefill(
            cached_tokens=cached, processed_tokens=processed, prompt_tokens=prompt
        )
    )


def delta(text: str, *token_ids: int) -> generation_pb2.GenerateResponse:
    return generation_pb2.GenerateResponse(
        delta=generation_pb2.Delta(text=text, token_ids=token_ids)
    )


def finish(
    reason: generation_pb2.FinishReason.ValueType = generation_pb2.FINISH_REASON_STOP,
    stop_sequence: str = "",
    **usage: Any,
) -> generation_pb2.GenerateResponse:
    return generation_pb2.GenerateResponse(
        finish=generation_pb2.Finish(
            reason=reason, stop_sequence=stop_sequence, usage=generation_pb2.Usage(**usage)
        )
    )


def refuse(
    context: grpc.ServicerContext, status: grpc.StatusCode, message: str, *details: Message
) -> Never:
    packed = [AnyMessage() for _ in details]
    for any_message, detail in zip(packed, details, strict=True):
        any_message.Pack(detail)
    rich = status_pb2.Status(code=status.value[0], message=message, details=packed)
    context.abort_with_status(rpc_status.to_status(rich))


class FakeDaemon(
    generation_pb2_grpc.GenerationServiceServicer,
    cache_pb2_grpc.CacheServiceServicer,
    FakeSessions,
):
    def __init__(self, reply: Script) -> None:
        self.reply = reply
        self.requests: list[Any] = []  # messages of several kinds
        self.ended = threading.Event()  # a stream ended, however it did
        self.called = threading.Event()  # a Generate or Tokenize arrived
        self._free = threading.Event()  # Tokenize answers
        self._free.set()
        self.health = HealthServicer()
        self.nodes: Iterable[cache_pb2.TreeNode] = ()
        self.stats = cache_pb2.GetCacheStatsResponse()
        self.pins = [cache_pb2.Pin()]
        self.busy = 0  # how many calls are still refused, each with
        self.retry_after_s = 0.05
        self.peers: set[str] = set()
        self.shown: list[dict[str, str]] = []  # the metadata of calls

    def _answer(self, context: grpc.ServicerContext) -> None:
        """Notes who asks, or refuses."""
        self.peers.add(context.peer())
        self.shown.append({key: str(value) for key, value in context.invocation_metadata()})
        if self.busy:
            self.busy -= 1
            info = error_details_pb2.ErrorInfo(domain="sapwood", reason="QUEUE_FULL")
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromMilliseconds(round(self.retry_after_s * 1000))
            refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", info, retry)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Tokenize does not answer inside of this."""
        self._free.clear()
        try:
            yield
        finally:
            self._free.set()

    def Generate(self, request: Request, context: grpc.ServicerContext) -> Responses:
        self.requests.append(request)
        self.called.set()
        context.add_callback(self.ended.set)
        self._answer(context)
        yield from self.reply(request, context)

    def Tokenize(
        self, request: generation_pb2.TokenizeRequest, context: grpc.ServicerContext
    ) -> generation_pb2.TokenizeResponse:
        self.requests.append(request)
        self.called.set()
        self._free.wait(30)
        self._answer(context)
        return generation_pb2.TokenizeResponse(token_ids=[2, 7, 9])

    def Detokenize(
        self, request: generation_pb2.DetokenizeRequest, context: grpc.ServicerContext
    ) -> generation_pb2.DetokenizeResponse:
        self.requests.append(request)
        self._answer(context)
        return generation_pb2.DetokenizeResponse(text="seven nine")

    def GetModel(
        self, request: generation_pb2.GetModelRequest, context: grpc.ServicerContext
    ) -> generation_pb2.GetModelResponse:
        self._answer(context)
        return generation_pb2.GetModelResponse(
            name="demo",
            family="gemma4",
            fingerprint="c0ffee",
            context_tokens_max=4096,
            vocabulary_size=1024,
            eos_token_ids=[1, 106],
            drafter="demo-assistant",
            numerics=generation_pb2.NUMERICS_FAST,
            self_check=model_pb2.SELF_CHECK_COUNT,
            device="cpu",
        )

    def GetCacheStats(
        self, request: cache_pb2.GetCacheStatsRequest, context: grpc.ServicerContext
    ) -> cache_pb2.GetCacheStatsResponse:
        self._answer(context)
        return self.stats

    def DescribeTree(
        self, request: cache_pb2.DescribeTreeRequest, context: grpc.ServicerContext
    ) -> Iterator[cache_pb2.DescribeTreeResponse]:
        self.requests.append(request)
        context.add_callback(self.ended.set)
        self._answer(context)
        for node in self.nodes:
            yield cache_pb2.DescribeTreeResponse(node=node)

    def PinPrefix(
        self, request: cache_pb2.PinPrefixRequest, context: grpc.ServicerContext
    ) -> cache_pb2.PinPrefixResponse:
        self.requests.append(request)
        self._answer(context)
        return cache_pb2.PinPrefixResponse(pin=self.pins[-1])

    def ListPins(
        self, request: cache_pb2.ListPinsRequest, context: grpc.ServicerContext
    ) -> cache_pb2.ListPinsResponse:
        """A pin a page."""
        self.requests.append(request)
        self._answer(context)
        at = int(request.page_token or 0)
        token = str(at + 1) if at + 1 < len(self.pins) else ""
        return cache_pb2.ListPinsResponse(pins=self.pins[at : at + 1], next_page_token=token)

    def UnpinPrefix(
        self, request: cache_pb2.UnpinPrefixRequest, context: grpc.ServicerContext
    ) -> cache_pb2.UnpinPrefixResponse:
        self.requests.append(request)
        self._answer(context)
        return cache_pb2.UnpinPrefixResponse()

    def EvictPrefix(
        self, request: cache_pb2.EvictPrefixRequest, context: grpc.ServicerContext
    ) -> cache_pb2.EvictPrefixResponse:
        self.requests.append(request)
        self._answer(context)
        return cache_pb2.EvictPrefixResponse(nodes=1, freed_bytes=2, held_bytes=3)

    def ClearCache(
        self, request: cache_pb2.ClearCacheRequest, context: grpc.ServicerContext
    ) -> cache_pb2.ClearCacheResponse:
        self._answer(context)
        return cache_pb2.ClearCacheResponse(nodes=4, freed_bytes=5)


@contextmanager
def serving(daemon: FakeDaemon, address: str) -> Iterator[str]:
    """Serves on `unix:PATH` or HOST:0 and gives the real address."""
    with ThreadPoolExecutor(max_workers=16) as pool:
        server = grpc.server(pool)
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(daemon, server)
        cache_pb2_grpc.add_CacheServiceServicer_to_server(daemon, server)
        session_pb2_grpc.add_SessionServiceServicer_to_server(daemon, server)
        health_pb2_grpc.add_HealthServicer_to_server(daemon.health, server)
        daemon.health.set("", health_pb2.HealthCheckResponse.SERVING)
        port = server.add_insecure_port(address)
        server.start()
        try:
            yield address if address.startswith("unix:") else f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()


USAGE: dict[str, Any] = {
    "prompt_tokens": 9,
    "cached_tokens": 4,
    "completion_tokens": 3,
    "decode_steps": 1,
    "rounds": 1,
    "draft_tokens": 2,
    "accepted_tokens": 1,
    "queue_seconds": 0.25,
    "prefill_seconds": 0.5,
    "decode_seconds": 2.0,
}


def whole_reply(request: Request, context: grpc.ServicerContext) -> Responses:
    yield prefill(4, 6, 9)
    yield prefill(4, 9, 9)
    yield delta("Hi ", 10)
    yield delta("", 11)
    yield delta("there", 12)
    yield finish(generation_pb2.FINISH_REASON_STOP_SEQUENCE, "\n", **USAGE)


def endless_reply(request: Request, context: grpc.ServicerContext) -> Responses:
    yield prefill(0, 1, 1)
    turn = threading.Event()
    context.add_callback(turn.set)
    while not turn.wait(0.005):
        yield delta("x", 1)


async def done(result: T | Awaitable[T]) -> T:
    return await result if inspect.isawaitable(result) else result


async def each(stream: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(stream, AsyncIterable):
        async for item in stream:
            yield item
    else:
        for item in stream:
            yield item


async def read_to_a_delta(stream: Iterable[sapwood.Event] | AsyncIterable[sapwood.Event]) -> None:
    async for event in each(stream):
        if isinstance(event, sapwood.Delta):
            return


def part(**fields: Any) -> generation_pb2.GenerateResponse:
    return generation_pb2.GenerateResponse(delta=generation_pb2.Delta(**fields))

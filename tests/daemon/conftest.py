"""A running daemon and a channel to it, both in the test's own event loop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from sapwood.daemon.engine.loaded import Loaded
from sapwood.daemon.process.server import Daemon
from sapwood.daemon.settings.addresses import TcpAddress
from sapwood.daemon.settings.config import Config, load_config
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.stats import Stats
from sapwood.v1 import cache_pb2_grpc, generation_pb2_grpc, prompt_pb2, session_pb2_grpc
from sapwood.v1 import generation_pb2 as pb
from tests.daemon.fakes import FakeDevice, make_loader


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def usual_signals() -> Iterator[None]:
    """Processes inherit what is ignored, and under nohup or behind `&` that is more than usual."""
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
    ignored = [number for number in numbers if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@dataclass
class Running:
    """A daemon that serves, its device, and stubs on one channel."""

    daemon: Daemon
    device: FakeDevice
    channel: grpc.aio.Channel
    generation: Any
    cache: Any
    sessions: Any

    @property
    def address(self) -> str:
        return str(self.daemon.grpc_addresses[0])

    @property
    def metrics(self) -> TcpAddress:
        assert self.daemon.metrics_address is not None
        return self.daemon.metrics_address


Run = Callable[..., AbstractAsyncContextManager[Running]]


def config_for(limits: Limits = Limits(), **settings: Any) -> Config:  # noqa: B008 (frozen)
    flags = {"listen": ["127.0.0.1:0"], "metrics": "127.0.0.1:0"} | settings
    return replace(load_config(flags), limits=limits)


@asynccontextmanager
async def running(
    device: FakeDevice | None = None,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    load: Callable[[], Loaded] | None = None,
    settings: dict[str, Any] | None = None,
    **loaded: Any,
) -> AsyncIterator[Running]:
    """Start, wait until it serves, yield, stop. What a test left running ends at once."""
    device = device or FakeDevice()
    config = config_for(limits, **settings or {})
    daemon = Daemon(config, load or make_loader(device, limits, **loaded))
    await daemon.start()
    assert await daemon.wait_loaded()
    channel = grpc.aio.insecure_channel(str(daemon.grpc_addresses[0]))
    try:
        yield Running(
            daemon,
            device,
            channel,
            generation_pb2_grpc.GenerationServiceStub(channel),
            cache_pb2_grpc.CacheServiceStub(channel),
            session_pb2_grpc.SessionServiceStub(channel),
        )
    finally:
        await channel.close()
        device.ungate()
        daemon.drain()
        daemon.drain()
        await daemon.stop()


@contextmanager
def on_own_loop(
    served: AbstractAsyncContextManager[Running],
) -> Iterator[tuple[asyncio.AbstractEventLoop, Running]]:
    """A daemon for tests that are no coroutines: hypothesis calls them many times each."""
    loop = asyncio.new_event_loop()
    run = loop.run_until_complete(served.__aenter__())
    try:
        yield loop, run
    finally:
        loop.run_until_complete(served.__aexit__(None, None, None))
        loop.close()


def prompt_of(*ids: int, **fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(token_ids=prompt_pb2.TokenIds(ids=ids), **fields)


async def collect(call: Any) -> tuple[list[int], str, list[pb.GenerateResponse]]:
    """Token ids, text and all events of one reply."""
    events = [event async for event in call]
    deltas = [event.delta for event in events if event.WhichOneof("event") == "delta"]
    ids = [i for delta in deltas for i in delta.token_ids]
    return ids, "".join(delta.text for delta in deltas), events


def reason_of(error: grpc.RpcError) -> tuple[str, str]:
    """Status and our reason; the reason is empty where the status carries none."""
    status = _status_of(error)
    info = error_details_pb2.ErrorInfo()
    for detail in status.details if status else ():
        if detail.Unpack(info):
            assert info.domain == "sapwood"
    return error.code().name, info.reason


def _status_of(error: grpc.RpcError) -> Any:
    # The errors of both APIs have the three methods of a Call that this reads.
    return rpc_status.from_call(cast("grpc.Call", error))


def details_of(error: grpc.aio.AioRpcError, kind: Any) -> Any:
    """The detail of one kind, or None."""
    status = _status_of(error)
    found = kind()
    return found if status and any(d.Unpack(found) for d in status.details) else None


async def error_of(call: Any) -> grpc.aio.AioRpcError:
    """How a call ends that is refused: one answer, or a stream that is read until then."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (collect(call) if hasattr(call, "read") else call)
    return caught.value


async def until(holds: Callable[[], bool]) -> None:
    """Poll: what is waited for happens on the engine thread, which knows no events of the loop."""
    while not holds():  # noqa: ASYNC110
        await asyncio.sleep(0.002)


def stats(run: Running) -> Stats:
    return published(run.daemon)


def published(daemon: Daemon) -> Stats:
    found = daemon._engine.published
    assert found is not None
    return found.stats


def open_rpcs(run: Running) -> int:
    return len(run.daemon._gate.mailboxes)

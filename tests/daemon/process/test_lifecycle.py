"""Loading, draining, failing, stalling: what clients, health and metrics see (D1 to D4)."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from typing import Any, cast

import anyio
import grpc
import pytest
from google.rpc import error_details_pb2
from grpc.aio._server import Server
from grpc_health.v1 import health_pb2

from sapwood.daemon.engine.loaded import Loaded
from sapwood.daemon.errors import StartError, UsageError
from sapwood.daemon.process.server import Daemon
from sapwood.daemon.rpc.services import HEALTH
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.reasons import Refused
from sapwood.v1 import generation_pb2 as pb
from tests.daemon.conftest import (
    collect,
    config_for,
    details_of,
    open_rpcs,
    prompt_of,
    published,
    reason_of,
    running,
    until,
)
from tests.daemon.fakes import FakeDevice, make_loader, reply_to

pytestmark = pytest.mark.anyio

GENERATE = "/sapwood.v1.GenerationService/Generate"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health_of(channel: grpc.aio.Channel, service: str = "") -> int:
    check = channel.unary_unary(
        f"/{HEALTH.full_name}/Check",
        health_pb2.HealthCheckRequest.SerializeToString,
        health_pb2.HealthCheckResponse.FromString,
    )
    return (await check(health_pb2.HealthCheckRequest(service=service))).status


def watch(channel: grpc.aio.Channel) -> Any:
    return channel.unary_stream(
        f"/{HEALTH.full_name}/Watch",
        health_pb2.HealthCheckRequest.SerializeToString,
        health_pb2.HealthCheckResponse.FromString,
    )(health_pb2.HealthCheckRequest(service="sapwood.v1.GenerationService"))


def generate(channel: grpc.aio.Channel, request: pb.GenerateRequest) -> Any:
    return channel.unary_stream(
        GENERATE, pb.GenerateRequest.SerializeToString, pb.GenerateResponse.FromString
    )(request)


async def test_while_the_model_loads_requests_get_model_loading() -> None:
    may_load = threading.Event()
    load = make_loader(FakeDevice(), Limits())

    def slow() -> Loaded:
        may_load.wait()
        return load()

    daemon = Daemon(config_for(), slow)
    await daemon.start()
    async with grpc.aio.insecure_channel(str(daemon.grpc_addresses[0])) as channel:
        statuses = aiter(watch(channel))
        assert (await anext(statuses)).status == NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collect(generate(channel, prompt_of(5)))
        assert reason_of(caught.value) == ("UNAVAILABLE", "MODEL_LOADING")
        assert details_of(caught.value, error_details_pb2.RetryInfo).retry_delay.seconds == 1
        may_load.set()
        assert await daemon.wait_loaded()
        assert (await anext(statuses)).status == SERVING
        assert await health_of(channel, "sapwood.v1.CacheService") == SERVING
        ids, _, _ = await collect(generate(channel, prompt_of(5, max_tokens=2)))
        assert len(ids) == 2
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health_of(channel, "nobody")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert await daemon.stop() == 0


@pytest.mark.parametrize(
    ("error", "code"), [(StartError("no such model"), 1), (UsageError("no drafter"), 2)]
)
async def test_a_model_that_does_not_load_ends_the_daemon(error: Exception, code: int) -> None:
    def fails() -> Loaded:
        raise error

    daemon = Daemon(config_for(), fails)
    await daemon.start()
    assert not await daemon.wait_loaded()
    assert await daemon.stop() == code
    assert daemon.fault is not None
    assert daemon.fault.message == str(error)


async def test_d1_a_drain_finishes_what_runs_and_refuses_what_comes() -> None:
    device = FakeDevice(gated=True)
    daemon = Daemon(config_for(Limits(slots_max=1)), make_loader(device, Limits(slots_max=1)))
    await daemon.start()
    assert await daemon.wait_loaded()
    async with grpc.aio.insecure_channel(str(daemon.grpc_addresses[0])) as channel:
        statuses = aiter(watch(channel))
        assert (await anext(statuses)).status == SERVING
        runs = generate(channel, prompt_of(5, 6, max_tokens=30))
        waits = generate(channel, prompt_of(8, max_tokens=30))
        await until(lambda: len(daemon._gate.mailboxes) == 2)
        device.step()
        await until(lambda: published(daemon).requests_waiting == 1)
        daemon.drain()
        stopping = asyncio.ensure_future(daemon.stop())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collect(generate(channel, prompt_of(7)))
        assert reason_of(caught.value) == ("UNAVAILABLE", "DRAINING")
        assert (await anext(statuses)).status == NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError):
            await anext(statuses)
        device.ungate()
        ids, _, _ = await collect(runs)
        assert ids == reply_to((5, 6), 30)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collect(waits)
        assert reason_of(caught.value) == ("UNAVAILABLE", "DRAINING")
        assert details_of(caught.value, error_details_pb2.RetryInfo).retry_delay.seconds == 1
        assert await stopping == 0
    assert not daemon.engine_alive


async def test_d1_what_outlives_drain_s_max_gets_draining() -> None:
    limits = Limits(drain_s_max=0.2)
    device = FakeDevice()
    daemon = Daemon(config_for(limits), make_loader(device, limits))
    await daemon.start()
    assert await daemon.wait_loaded()
    device.wait = slowed(device.wait)  # type: ignore[method-assign]
    async with grpc.aio.insecure_channel(str(daemon.grpc_addresses[0])) as channel:
        call = generate(channel, prompt_of(5, max_tokens=4000, draft_tokens=0))
        # Not only at the gate: a drain that overtook it would turn it away and cut nothing short.
        await until(lambda: published(daemon).requests_running == 1)
        daemon.drain()
        stopping = asyncio.ensure_future(daemon.stop())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collect(call)
        assert reason_of(caught.value) == ("UNAVAILABLE", "DRAINING")
        assert await stopping == 0
    assert not daemon.engine_alive


@pytest.mark.parametrize("hangs", ["device", "server"])
async def test_d1_whatever_hangs_the_process_has_half_a_second_to_end(hangs: str) -> None:
    """The promise is drain_s_max + 2 s from the signal to the exit, also on a busy machine."""
    limits = Limits(drain_s_max=0.2)
    device = FakeDevice(gated=True)
    daemon = Daemon(config_for(limits), make_loader(device, limits))
    await daemon.start()
    assert await daemon.wait_loaded()
    async with grpc.aio.insecure_channel(str(daemon.grpc_addresses[0])) as channel:
        call = generate(channel, prompt_of(5))
        await until(lambda: device.begun == 1)
        stop = daemon._servers.stop
        if hangs == "server":
            device.ungate()
            daemon._servers.stop = lambda _: anyio.sleep_forever()  # type: ignore[method-assign, assignment]
        began = anyio.current_time()
        daemon.drain()
        assert await daemon.stop() == 0
        assert anyio.current_time() - began < limits.drain_s_max + 1.5
        call.cancel()
        await stop(0.0)
    assert daemon.engine_alive == (hangs == "device")
    device.ungate()


def slowed(wait: Any) -> Any:
    def slow(plan: Any) -> Any:
        threading.Event().wait(0.01)
        return wait(plan)

    return slow


async def test_d1_a_second_request_to_stop_cuts_the_drain_short() -> None:
    device = FakeDevice()
    daemon = Daemon(config_for(), make_loader(device, Limits()))
    await daemon.start()
    assert await daemon.wait_loaded()
    device.wait = slowed(device.wait)  # type: ignore[method-assign]
    async with grpc.aio.insecure_channel(str(daemon.grpc_addresses[0])) as channel:
        call = generate(channel, prompt_of(5, max_tokens=4000, draft_tokens=0))
        # Not only at the gate: a drain that overtook it would turn it away and cut nothing short.
        await until(lambda: published(daemon).requests_running == 1)
        daemon.drain()
        stopping = asyncio.ensure_future(daemon.stop())
        await asyncio.sleep(0.05)
        daemon.drain()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collect(call)
        assert reason_of(caught.value) == ("UNAVAILABLE", "DRAINING")
        assert await stopping == 1


async def test_d1_a_server_that_does_not_close_in_time_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where it is cancelled it ends by a CancelledError that nobody sent, as gRPC's may."""
    stop = Server.stop

    async def hang(_server: Server, _grace_s: float) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await anyio.sleep_forever()
        raise asyncio.CancelledError

    async with running(limits=Limits(drain_s_max=0.1)) as run:
        with monkeypatch.context() as patched:
            patched.setattr("sapwood.daemon.process.server.LEAVE_S", 0.05)
            patched.setattr(Server, "stop", hang)
            assert await run.daemon.stop() == 0
        for server in run.daemon._servers._servers:
            await stop(cast("Server", server), 0.0)


async def test_d2_the_device_is_closed_on_its_own_thread_which_ends() -> None:
    async with running() as run:
        await collect(run.generation.Generate(prompt_of(5, max_tokens=2)))
    assert run.device.closed_on == "engine"
    assert not run.daemon.engine_alive


async def test_d3_a_device_fault_ends_every_rpc_and_the_daemon(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running(FakeDevice(gated=True)) as run:
        calls = [run.generation.Generate(prompt_of(201 + n, max_tokens=9)) for n in range(3)]
        await until(lambda: open_rpcs(run) == 3)
        run.device.step(3)
        run.device.fault = RuntimeError("prompt text")
        run.device.step()
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await collect(call)
            assert reason_of(caught.value) == ("UNAVAILABLE", "ENGINE_FAILED")
        await run.daemon.wait_ended()
        assert await health_of(run.channel) == NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collect(run.generation.Generate(prompt_of(5)))
        assert reason_of(caught.value) == ("UNAVAILABLE", "ENGINE_FAILED")
        assert await run.daemon.stop() == 1
    assert "RuntimeError" in caplog.text
    assert "slot 0" in caplog.text
    assert "QUEUED (submitted)" in caplog.text, "what each request went through"
    assert "prompt text" not in caplog.text
    assert not re.search(r"\b201\b", caplog.text), "a prompt's token"  # a time may hold the digits


async def test_d4_a_stalled_device_is_a_fault() -> None:
    limits = Limits(stall_s_max=0.2)
    async with running(FakeDevice(gated=True), limits) as run:
        call = run.generation.Generate(prompt_of(5))
        await run.daemon.wait_ended()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collect(call)
        assert reason_of(caught.value) == ("UNAVAILABLE", "ENGINE_FAILED")
        assert run.daemon.fault is not None
        assert await run.daemon.stop() == 1
        assert run.daemon.engine_alive


async def test_d4_an_idle_daemon_is_not_stalled() -> None:
    limits = Limits(stall_s_max=0.05, idle_s_max=0.02)
    async with running(limits=limits) as run:
        await collect(run.generation.Generate(prompt_of(5, max_tokens=2)))
        ended = asyncio.ensure_future(run.daemon.wait_ended())
        await asyncio.sleep(0.3)
        assert not ended.done()
        assert run.daemon._engine.quiet_s == 0
        run.daemon.drain()
        await ended


async def test_a_question_to_an_engine_that_ended_is_refused() -> None:
    async with running() as run:
        pass
    with pytest.raises(Refused, match="engine failed"):
        await run.daemon._gate.ask(Loaded.view_tree)

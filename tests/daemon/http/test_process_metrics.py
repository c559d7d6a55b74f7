"""Metrics of the process and its RPCs, before a model is there too; exemplars; gzip."""

from __future__ import annotations

import asyncio
import gzip
import threading
import time
from pathlib import Path

import grpc
import prometheus_client
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from sapwood import __version__
from sapwood.daemon.engine.loaded import Loaded
from sapwood.daemon.process.server import Daemon
from sapwood.scheduler.limits import Limits
from sapwood.v1 import generation_pb2 as pb
from sapwood.v1 import generation_pb2_grpc
from tests.daemon.conftest import (
    collect,
    config_for,
    error_of,
    prompt_of,
    running,
    until,
)
from tests.daemon.fakes import FakeDevice, make_loader
from tests.daemon.http.test_endpoint import asking, parted, said

pytestmark = pytest.mark.anyio

HAS_PROC = Path("/proc/stat").exists()
GENERATE = "sapwood.v1.GenerationService/Generate"


async def get_metrics(daemon: Daemon, *fields: str) -> tuple[dict[str, str], bytes]:
    """Fields of the head, and the body."""
    assert daemon.metrics_address is not None
    _, head, body = parted(await said(daemon.metrics_address, asking("/metrics", "GET", *fields)))
    return head, body


async def samples(daemon: Daemon) -> dict[str, tuple[dict[str, str], float]]:
    """By name, of those that have one sample."""
    text = (await get_metrics(daemon))[1].decode()
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {sample.name: (sample.labels, sample.value) for sample in found}


async def rpcs(daemon: Daemon) -> dict[tuple[str, str], float]:
    text = (await get_metrics(daemon))[1].decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    told = families["sapwood_rpcs"].samples
    return {(sample.labels["method"], sample.labels["code"]): sample.value for sample in told}


async def test_a_daemon_that_loads_says_so_and_what_it_is() -> None:
    device, hold = FakeDevice(), threading.Event()

    def load() -> Loaded:
        hold.wait()
        return make_loader(device, Limits())()

    daemon = Daemon(config_for(), load)
    await daemon.start()
    try:
        async with grpc.aio.insecure_channel(str(daemon.grpc_addresses[0])) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            await error_of(stub.Generate(prompt_of(5)))
        early = await samples(daemon)
        assert early["sapwood_build_info"] == ({"version": __version__}, 1)
        assert early["sapwood_model_loading"][1] == 1
        assert 0 < early["sapwood_uptime_seconds"][1] < 60
        assert early.keys().isdisjoint({"sapwood_model_info", "sapwood_drafter_info"})
        while (counted := await rpcs(daemon)).get((GENERATE, "UNAVAILABLE")) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # an RPC is counted once it is over, a moment after its end
        assert counted[GENERATE, "UNAVAILABLE"] == 1
        hold.set()
        assert await daemon.wait_loaded()
        loaded = await samples(daemon)
        assert loaded["sapwood_model_loading"][1] == 0
        name = {"name": "fake", "family": "fake", "fingerprint": "0102"}
        assert loaded["sapwood_model_info"] == (name, 1)
        assert loaded["sapwood_drafter_info"] == ({"name": "fake-drafter"}, 1)
        assert loaded["sapwood_uptime_seconds"][1] > early["sapwood_uptime_seconds"][1]
    finally:
        hold.set()
        daemon.drain()
        await daemon.stop()


async def test_rpcs_are_counted_by_how_they_ended() -> None:
    async with running(FakeDevice(gated=True)) as run:
        assert set((await rpcs(run.daemon)).values()) == {0}
        assert (GENERATE, "OK") in await rpcs(run.daemon)
        await error_of(run.generation.Generate(pb.GenerateRequest()))
        await error_of(run.generation.Generate(prompt_of(5), timeout=0.2))
        call = run.generation.Generate(prompt_of(5, max_tokens=2))
        run.device.ungate()
        await collect(call)
        await run.generation.GetModel(pb.GetModelRequest())
        ended = run.daemon._gate.telemetry.ended
        await until(lambda: sum(ended.values()) == 4)
        counted = {key: count for key, count in (await rpcs(run.daemon)).items() if count}
    assert counted == {
        (GENERATE, "OK"): 1,
        (GENERATE, "INVALID_ARGUMENT"): 1,
        (GENERATE, "DEADLINE_EXCEEDED"): 1,
        ("sapwood.v1.GenerationService/GetModel", "OK"): 1,
    }


async def test_the_process_is_told_of_with_or_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as run:
        told = await samples(run.daemon)
        if HAS_PROC:
            assert told["process_resident_memory_bytes"][1] > 1 << 20
            assert told["process_open_fds"][1] > 3
        monkeypatch.setattr(prometheus_client.ProcessCollector, "collect", lambda _self: [])
        bare = await samples(run.daemon)
    for found in (told, bare):
        assert 0 < found["process_cpu_seconds_total"][1] <= time.process_time()
        assert 0 < time.time() - found["process_start_time_seconds"][1] < 24 * 3600
    assert "process_open_fds" not in bare


async def test_a_bucket_leads_to_the_newest_request_in_it() -> None:
    async with running() as run:
        for name in ("first", "second"):
            metadata = (("x-request-id", name),)
            await collect(run.generation.Generate(prompt_of(5, max_tokens=3), metadata=metadata))
        accept = "Accept: application/openmetrics-text; version=1.0.0"
        head, body = await get_metrics(run.daemon, accept)
        plain = (await get_metrics(run.daemon))[1]
    assert "application/openmetrics-text" in head["content-type"] and b"request_id" not in plain
    found = {
        family.name: [sample for sample in family.samples if sample.exemplar is not None]
        for family in openmetrics(body.decode())  # type: ignore[no-untyped-call]
    }
    having = {name for name, marked in found.items() if marked}
    assert having == {
        "sapwood_time_to_first_token_seconds",
        *(f"sapwood_request_{part}_seconds" for part in ("queue", "prefill", "decode", "duration")),
    }
    for name in having:
        for sample in found[name]:
            exemplar = sample.exemplar
            assert exemplar is not None and exemplar.labels.keys() == {"request_id"}
            assert exemplar.value <= float(sample.labels["le"])
            assert exemplar.timestamp is not None and time.time() - float(exemplar.timestamp) < 60
        assert "second" in [s.exemplar.labels["request_id"] for s in found[name] if s.exemplar]


async def test_who_takes_gzip_gets_it_and_the_same_text() -> None:
    async with running() as run:
        head, body = await get_metrics(run.daemon, "Accept-Encoding: deflate, gzip;q=1.0")
        plain_head, plain = await get_metrics(run.daemon)
        health = await said(run.metrics, asking("/healthz", "GET", "Accept-Encoding: gzip"))
    assert head["content-encoding"] == "gzip" and "content-encoding" not in plain_head
    assert names_in(gzip.decompress(body)) == names_in(plain) != []
    assert len(body) < len(plain) / 4
    assert parted(health)[2] == b"ok\n", "too little to be worth it"


def names_in(text: bytes) -> list[bytes]:
    return [line.split()[0] for line in text.splitlines() if line.startswith(b"sapwood_")]

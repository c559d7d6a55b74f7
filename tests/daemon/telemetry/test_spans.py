"""Spans of requests, as a collector over HTTP gets them; and nothing at all where none is named."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sapwood import __version__
from sapwood.daemon.telemetry import tracing
from sapwood.v1 import generation_pb2 as pb
from sapwood.v1 import prompt_pb2
from tests.daemon.conftest import collect, error_of, open_rpcs, prompt_of, running, until
from tests.daemon.fakes import FakeDevice
from tests.test_rooms import ROOT

pytestmark = pytest.mark.anyio

SECRET = "the name of the rose"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
OUR_ID = ("x-request-id", "r-1")


class Collector(ThreadingHTTPServer):
    """OTLP over HTTP, as much of it as takes traces."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.bodies: list[bytes] = []
        self.paths: set[str] = set()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def resources(self) -> list[dict[str, Any]]:
        return [values(each.resource) for each in self._each()]

    @property
    def spans(self) -> list[Any]:
        return [span for each in self._each() for s in each.scope_spans for span in s.spans]

    def _each(self) -> Iterator[Any]:
        for body in self.bodies:
            yield from ExportTraceServiceRequest.FromString(body).resource_spans


class Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        self.server.paths.add(self.path)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.endpoint)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def values(holder: Any) -> dict[str, Any]:
    """Attributes by name, as Python's values."""
    return {each.key: value_of(each.value) for each in holder.attributes}


def value_of(value: Any) -> Any:
    kind = value.WhichOneof("value")
    found = getattr(value, kind)
    return [value_of(each) for each in found.values] if kind == "array_value" else found


async def test_a_reply_is_a_span_with_its_four_parts(collector: Collector) -> None:
    request = pb.GenerateRequest(
        messages=prompt_pb2.Messages(messages=[prompt_pb2.Message(role="user", content=SECRET)]),
        max_tokens=30,
        sampling=pb.Sampling(temperature=0.5),
    )
    began = time.time_ns()
    async with running() as run:
        metadata = (OUR_ID, ("traceparent", f"00-{TRACE}-{PARENT}-01"))
        usage = (await collect(run.generation.Generate(request, metadata=metadata)))[2][
            -1
        ].finish.usage
    assert collector.paths == {"/v1/traces"}
    (resource,) = collector.resources
    assert resource["service.name"] == "sapwood" and resource["service.version"] == __version__
    spans = {span.name: span for span in collector.spans}
    assert spans.keys() == {"chat fake", "queue", "prefill", "rounds", "emit"}
    root = spans["chat fake"]
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
    assert root.parent_span_id.hex() == PARENT and root.kind == root.SPAN_KIND_SERVER
    told = values(root)
    assert told == told | {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "sapwood",
        "gen_ai.request.model": "fake",
        "gen_ai.request.max_tokens": 30,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.response.id": "r-1",
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": 30,
        "rpc.method": "Generate",
        "sapwood.principal": "local",
    }
    assert values(spans["rounds"])["sapwood.accepted_tokens"] == usage.accepted_tokens
    parts = [spans[name] for name in ("queue", "prefill", "rounds", "emit")]
    assert all(part.parent_span_id == root.span_id for part in parts)
    assert all(one.end_time_unix_nano == two.start_time_unix_nano for one, two in pairs(parts))
    lasted = [(part.end_time_unix_nano - part.start_time_unix_nano) / 1e9 for part in parts[:3]]
    assert lasted == pytest.approx(
        [usage.queue_seconds, usage.prefill_seconds, usage.decode_seconds], abs=1e-6
    )
    assert began <= root.start_time_unix_nano <= root.end_time_unix_nano <= time.time_ns()
    assert parts[-1].end_time_unix_nano <= root.end_time_unix_nano
    assert not any(SECRET.encode() in body for body in collector.bodies)


def pairs(parts: list[Any]) -> list[tuple[Any, Any]]:
    return list(pairwise(parts))


async def test_what_is_refused_or_given_up_says_why_and_how_far_it_came(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    device = FakeDevice(gated=True)
    async with running(device) as run:
        await error_of(run.generation.Generate(pb.GenerateRequest()))
        queued = run.generation.Generate(prompt_of(5, max_tokens=900))
        await until(lambda: open_rpcs(run) == 1)
        queued.cancel()
        await until(lambda: not open_rpcs(run))
        runs = run.generation.Generate(prompt_of(6, max_tokens=900))
        events = aiter(runs)
        device.step(20)
        while not (await anext(events)).delta.token_ids:
            pass
        runs.cancel()
        await until(lambda: not open_rpcs(run))
    roots = [span for span in collector.spans if not span.parent_span_id]
    told = [values(root) for root in roots]
    assert [root.name for root in roots] == ["text_completion", *["text_completion fake"] * 2]
    assert [each["error.type"] for each in told] == ["EMPTY_PROMPT", "CANCELLED", "CANCELLED"]
    assert [each["sapwood.outcome"] for each in told] == ["rejected", "cancelled", "cancelled"]
    assert all(root.status.code == root.status.STATUS_CODE_ERROR for root in roots)
    parts = [
        [span.name for span in collector.spans if span.parent_span_id == root.span_id]
        for root in roots
    ]
    assert parts == [[], ["queue"], ["queue", "prefill", "rounds"]]
    assert not [each for each in caplog.records if each.levelno > logging.INFO]


async def test_a_trace_that_its_client_does_not_sample_is_not_sent(collector: Collector) -> None:
    async with running() as run:
        metadata = (("traceparent", f"00-{TRACE}-{PARENT}-00"),)
        await collect(run.generation.Generate(prompt_of(5, max_tokens=3), metadata=metadata))
    assert collector.bodies == []


async def test_a_collector_that_is_not_there_costs_nobody_a_reply_nor_the_exit(
    monkeypatch: pytest.MonkeyPatch, collector: Collector
) -> None:
    hold = threading.Event()
    monkeypatch.setattr(Receiver, "do_POST", lambda _self: hold.wait(60))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    async with running() as run:
        assert len((await collect(run.generation.Generate(prompt_of(5, max_tokens=3))))[0]) == 3
        stopping = time.monotonic()
        await run.daemon.stop()
        lasted = time.monotonic() - stopping
        hold.set()
    assert lasted < 20, "the SDK would wait for 30 s"


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}, ""),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "no spans are exported: 'grpc' is asked for, and http/protobuf is served",
        ),
    ],
)
def test_without_a_collector_that_it_can_reach_there_are_no_spans(
    environ: dict[str, str], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert tracing.spans_from(environ) is None
    assert caplog.messages == ([told] if told else [])


def test_without_the_extra_there_are_no_spans_and_a_line_that_says_how(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracing, "_NEEDED", ("opentelemetry.nowhere.at_all",))
    assert tracing.spans_from({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}) is None
    assert caplog.messages == ['no spans are exported: they need pip install "sapwood[otel]"']


def test_nobody_who_wants_no_spans_imports_opentelemetry() -> None:
    code = "import sys, sapwood.daemon.process.server; print('opentelemetry.sdk' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"

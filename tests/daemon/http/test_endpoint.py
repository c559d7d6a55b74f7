"""The HTTP endpoint by itself: what it answers, and whom it does not wait for."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, Gauge

from sapwood.daemon.http.endpoint import ScrapeEndpoint
from sapwood.daemon.settings.addresses import TcpAddress
from sapwood.scheduler.limits import Limits
from tests.daemon.conftest import until

pytestmark = pytest.mark.anyio

TIGHT = Limits(http_head_bytes_max=256, http_request_s_max=0.3, http_connections_max=4)
OPENMETRICS, TEXT = "application/openmetrics-text", "text/plain"


def one_gauge(help_text: str = "help") -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("x", help_text, registry=registry).set(1)
    return registry


@asynccontextmanager
async def serving(
    registry: CollectorRegistry | None = None,
    limits: Limits = TIGHT,
    healthy: Callable[[], bool] = lambda: True,
) -> AsyncIterator[TcpAddress]:
    endpoint = ScrapeEndpoint(registry or one_gauge(), healthy, lambda: False, limits)
    address = await endpoint.start(TcpAddress("127.0.0.1", 0))
    try:
        yield address
    finally:
        endpoint.close()
        await asyncio.sleep(0)


async def said(address: TcpAddress, request: bytes) -> bytes:
    """All that comes back until the endpoint hangs up."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        writer.write(request)
        return await asyncio.wait_for(reader.read(), 10)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def asking(target: str, method: str = "GET", *fields: str) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: x", *fields]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def parted(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, fields and body."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(status.split()[1]), fields, body


@pytest.mark.parametrize(
    ("method", "target", "status", "body"),
    [
        ("GET", "/metrics", 200, b"# HELP x help\n# TYPE x gauge\nx 1.0\n"),
        ("GET", "/metrics?name[]=x", 200, b"# HELP x help\n# TYPE x gauge\nx 1.0\n"),
        ("GET", "/healthz", 200, b"ok\n"),
        ("HEAD", "/healthz", 200, b""),
        ("GET", "/readyz", 503, b"not ok\n"),
        ("GET", "http://x/healthz", 200, b"ok\n"),
        ("GET", "HTTPS://x:1/healthz?y", 200, b"ok\n"),
        ("HEAD", "http://x/metrics", 200, b""),
        ("GET", "http://x", 404, b"not here: /metrics, /healthz, /readyz\n"),
        ("GET", "http://x//healthz", 404, b"not here: /metrics, /healthz, /readyz\n"),
        ("GET", "/", 404, b"not here: /metrics, /healthz, /readyz\n"),
        ("GET", "/metrics/", 404, b"not here: /metrics, /healthz, /readyz\n"),
        ("POST", "/metrics", 405, b"Method Not Allowed"),
        ("OPTIONS", "*", 404, b"not here: /metrics, /healthz, /readyz\n"),
    ],
)
async def test_what_it_answers(method: str, target: str, status: int, body: bytes) -> None:
    async with serving() as address:
        found, fields, text = parted(await said(address, asking(target, method)))
    assert (found, text) == (status, body)
    assert fields["connection"] == "close"
    assert fields["date"].endswith("GMT")
    assert int(fields["content-length"]) >= len(body)


@pytest.mark.parametrize(
    ("accept", "kind", "version"),
    [
        ("", TEXT, "0.0.4"),
        ("*/*", TEXT, "0.0.4"),
        ("text/*;q=0.5", TEXT, "0.0.4"),
        ("text/html", TEXT, "0.0.4"),  # a browser's: better than nothing
        (TEXT, TEXT, "0.0.4"),
        (f'{TEXT}; version="0.0.4"', TEXT, "0.0.4"),
        (f"{TEXT};version=1.0.0", TEXT, "1.0.0"),
        (f"{TEXT};version=9.9.9", TEXT, "0.0.4"),
        (f"{TEXT};version=x,{OPENMETRICS};version=y", TEXT, "0.0.4"),
        (OPENMETRICS, OPENMETRICS, "1.0.0"),
        (OPENMETRICS.upper(), OPENMETRICS, "1.0.0"),
        (f'{OPENMETRICS}; version="1.0.0"', OPENMETRICS, "1.0.0"),
        (f"{OPENMETRICS}; version=1.0.0; charset=utf-8", OPENMETRICS, "1.0.0"),
        (f"{OPENMETRICS}; version=0.0.1", TEXT, "0.0.4"),
        (f"{OPENMETRICS}; version=2.0.0", TEXT, "0.0.4"),
        (f"{OPENMETRICS}; version=1.0.0.x,{OPENMETRICS};version=1.0.0;q=0.1", OPENMETRICS, "1.0.0"),
        (f"{OPENMETRICS};q=0,{TEXT}", TEXT, "0.0.4"),
        (f"{OPENMETRICS};q=0.2,{TEXT};q=0.9", TEXT, "0.0.4"),
        (f"{OPENMETRICS};q=x", OPENMETRICS, "1.0.0"),
        (f'{OPENMETRICS}; version="1.0', TEXT, "0.0.4"),
        (f"text/html\r\nAccept: {OPENMETRICS}", OPENMETRICS, "1.0.0"),  # in two lines
        (";;;=,,;version=;\xff\xb2=\xb2", TEXT, "0.0.4"),
        (  # Prometheus 3
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
            "application/openmetrics-text;version=0.0.1;q=0.5,"
            "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,"
            "*/*;q=0.2",
            OPENMETRICS,
            "1.0.0",
        ),
    ],
)
async def test_any_accept_is_answered_with_what_it_can_read(
    accept: str, kind: str, version: str
) -> None:
    limits = replace(TIGHT, http_head_bytes_max=1024)
    async with serving(limits=limits) as address:
        answer = await said(address, asking("/metrics", "GET", f"Accept: {accept}"))
    status, fields, body = parted(answer)
    assert status == 200
    assert fields["content-type"].startswith(f"{kind}; version={version}; charset=utf-8")
    assert body.endswith(b"# EOF\n") == (kind == OPENMETRICS)


async def test_a_head_that_is_too_long_is_refused_and_one_that_never_ends_is_cut() -> None:
    async with serving() as address:
        long = b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 1000
        assert (await said(address, long)).startswith(b"HTTP/1.1 400 ")
        assert await said(address, b"GET /metrics HTTP/1.1\r\n") == b""
        assert await said(address, b"") == b""


async def test_a_head_that_comes_byte_by_byte_has_the_same_time() -> None:
    async with serving() as address:
        reader, writer = await asyncio.open_connection(address.host, address.port)
        begun, ended = time.monotonic(), asyncio.create_task(reader.read())
        while not ended.done() and time.monotonic() < begun + 60:
            writer.write(b"X")
            await asyncio.sleep(0.02)
        took_s = time.monotonic() - begun
        writer.close()
        with suppress(ConnectionResetError):
            assert await ended == b""
    assert TIGHT.http_request_s_max <= took_s < 60


async def test_an_answer_that_is_not_read_is_cut() -> None:
    text = "x" * 30_000_000
    async with serving(one_gauge(text)) as address:
        with socket.create_connection((address.host, address.port)) as peer:
            peer.sendall(asking("/metrics"))
            await asyncio.sleep(TIGHT.http_request_s_max + 1)
            peer.settimeout(60)
            received = 0
            while piece := peer.recv(1 << 20):
                received += len(piece)
    assert 0 < received < len(text), "what the kernel had taken by then, and no more"


async def test_a_crowd_that_says_nothing_keeps_nobody_out() -> None:
    """Twice as many as there may be, silent or slow; then one after the other is served at once."""
    limits = Limits(http_request_s_max=60, http_connections_max=16)
    async with serving(limits=limits) as address:
        crowd = []
        for number in range(2 * limits.http_connections_max):
            crowd.append(await asyncio.open_connection(address.host, address.port))
            crowd[-1][1].write(b"GET /metrics HTTP/1.1\r\n" if number % 2 else b"")
        begun = time.monotonic()
        for _ in range(20):
            answer = await said(address, asking("/metrics"))
            assert answer.startswith(b"HTTP/1.1 200 ")
        assert time.monotonic() - begun < limits.http_request_s_max / 2
        left = [reader for reader, _ in crowd if not reader.at_eof()]
        assert len(left) <= limits.http_connections_max
        for _, writer in crowd:
            writer.close()


async def test_a_bug_of_ours_is_500_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    text = "".join(["sec", "ret"])  # source lines are quoted

    def broken() -> bool:
        raise RuntimeError(text)

    async with serving(healthy=broken) as address:
        status, _, body = parted(await said(address, asking("/healthz")))
        assert (await said(address, asking("/metrics"))).startswith(b"HTTP/1.1 200 ")
    assert (status, body) == (500, b"a fault of the daemon\n")
    assert "RuntimeError" in caplog.text
    assert text not in caplog.text


async def test_a_bug_that_ends_the_listening_is_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(["sec", "ret"])

    async def broken(_loop: object, _listener: object) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(type(asyncio.get_running_loop()), "sock_accept", broken)
    async with serving(), asyncio.timeout(10):
        await until(lambda: bool(caplog.records))
    assert "HTTP is not served any more: RuntimeError" in caplog.text
    assert text not in caplog.text


async def test_signals_and_logs_stay_ours(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers, loggers = [signal.getsignal(n) for n in numbers], logging.getLogger().handlers[:]
    async with serving() as address:
        assert [signal.getsignal(n) for n in numbers] == handlers
        for junk in (b"\x00\xff junk\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: y\r\n\r\n"):
            assert await said(address, junk)
        await said(address, asking("/metrics", "GET", "Connection: Upgrade", "Upgrade: websocket"))
    assert [signal.getsignal(n) for n in numbers] == handlers
    assert logging.getLogger().handlers == loggers
    assert [record for record in caplog.records if record.name != "asyncio"] == []

"""The HTTP endpoint by itself: what it answers, and what it does not wait for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry

from sapwood.daemon.http.endpoint import ScrapeEndpoint
from sapwood.daemon.settings.addresses import TcpAddress
from sapwood.scheduler.limits import Limits

pytestmark = pytest.mark.anyio

TIGHT = Limits(http_head_bytes_max=256, http_request_s_max=0.2, http_connections_max=2)


@asynccontextmanager
async def serving() -> AsyncIterator[TcpAddress]:
    endpoint = ScrapeEndpoint(CollectorRegistry(), lambda: True, lambda: False, TIGHT)
    address = await endpoint.start(TcpAddress("127.0.0.1", 0))
    try:
        yield address
    finally:
        endpoint.close()


async def said(address: TcpAddress, request: bytes) -> bytes:
    """All that comes back until the endpoint hangs up."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(request)
    try:
        return await asyncio.wait_for(reader.read(), 5)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("request_line", "status", "body"),
    [
        ("GET /metrics", 200, b""),  # of a registry without metrics
        ("GET /metrics?name[]=x", 200, b""),
        ("GET /healthz", 200, b"ok\n"),
        ("HEAD /healthz", 200, b""),
        ("GET /readyz", 503, b"not ok\n"),
        ("GET /", 404, b"not here: /metrics, /healthz, /readyz\n"),
        ("POST /metrics", 405, b"only GET\n"),
    ],
)
async def test_what_it_answers(request_line: str, status: int, body: bytes) -> None:
    async with serving() as address:
        answer = await said(address, f"{request_line} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    head, _, found = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert found == body


async def test_a_head_that_is_too_long_or_never_ends_is_not_waited_for() -> None:
    async with serving() as address:
        assert await said(address, b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 1000) == b""
        assert await said(address, b"GET /metrics HTTP/1.1\r\n") == b""


async def test_more_connections_than_there_may_be_are_closed_at_once() -> None:
    async with serving() as address:
        idle = [await asyncio.open_connection(address.host, address.port) for _ in range(2)]
        await asyncio.sleep(0.05)
        assert await said(address, b"GET /healthz HTTP/1.1\r\n\r\n") == b""
        for _, writer in idle:
            writer.close()
        await asyncio.sleep(0.05)
        assert (await said(address, b"GET /healthz HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200")

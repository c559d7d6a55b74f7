"""Metrics where a network reaches them: TLS, for operators; health is open."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from sapwood.daemon.http.door import ScrapeDoor
from sapwood.daemon.http.endpoint import ScrapeEndpoint
from sapwood.daemon.process.ready import ready_line
from sapwood.daemon.rpc.principals import Directory
from sapwood.daemon.settings.addresses import TcpAddress
from sapwood.daemon.settings.followed import Followed
from sapwood.daemon.settings.principals import PrincipalSettings, Role
from sapwood.daemon.settings.tls import TlsFiles, read_tls
from sapwood.daemon.settings.tokens import read_tokens
from sapwood.scheduler.limits import Limits
from tests.daemon.certificates import Authority, Issued
from tests.daemon.conftest import config_for, running
from tests.daemon.http.test_endpoint import asking, one_gauge, parted
from tests.daemon.tenants import Tokens

pytestmark = pytest.mark.anyio

TIGHT = Limits(http_request_s_max=0.5, http_connections_max=4)


def basic(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


@asynccontextmanager
async def kept(
    ca: Authority,
    server: Issued,
    tokens: Tokens | None,
    limits: Limits = TIGHT,
    *,
    certificates: bool = False,
) -> AsyncIterator[TcpAddress]:
    keys = read_tls(TlsFiles(server.cert, server.key, ca.path if certificates else None))
    table = None
    if tokens is not None:
        path = tokens.path
        table = Followed([path], lambda: read_tokens(path))
    directory = Directory({"op.example": PrincipalSettings(role=Role.OPERATOR)}, table)
    endpoint = ScrapeEndpoint(one_gauge(), lambda: True, lambda: True, limits)
    door = ScrapeDoor(lambda: keys.context, directory)
    try:
        yield await endpoint.start(TcpAddress("127.0.0.1", 0), door)
    finally:
        endpoint.close()
        await asyncio.sleep(0.05)


async def asked(
    address: TcpAddress, ca: Authority, request: bytes, issued: Issued | None = None
) -> tuple[int, dict[str, str], bytes]:
    context = ssl.create_default_context(cafile=str(ca.path))
    if issued is not None:
        context.load_cert_chain(issued.cert, issued.key)
    reader, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
    try:
        writer.write(request)
        return parted(await asyncio.wait_for(reader.read(), 10))
    finally:
        writer.close()


async def test_metrics_are_for_operators_tokens(folder: Path) -> None:
    ca, tokens = Authority(folder), Tokens(folder)
    user, operator = tokens.new("alice"), tokens.new("root", Role.OPERATOR)
    async with kept(ca, ca.issue("server"), tokens) as address:

        async def get(path: str, *fields: str) -> int:
            return (await asked(address, ca, asking(path, "GET", *fields)))[0]

        for path in ("/healthz", "/readyz"):
            assert await get(path) == 200
        status, fields, body = await asked(address, ca, asking("/metrics"))
        assert (status, fields["www-authenticate"]) == (401, "Bearer")
        assert body == b"a token is needed: authorization: Bearer TOKEN\n"
        assert await get("/metrics", "Authorization: Bearer sapwood_nobody") == 401
        assert await get("/metrics", f"Authorization: Basic {operator}") == 401
        assert await get("/metrics", f"Authorization: Basic {basic('anybody', operator)}") == 200
        assert await get("/metrics", f"Authorization: basic {basic('', operator)}") == 200
        assert await get("/metrics", f"Authorization: Basic {basic('root', user)}") == 403
        assert await get("/metrics", f"Authorization: Basic {basic(operator, '')}") == 401
        assert await get("/metrics", "Authorization: Basic /w==") == 401
        assert await get("/metrics", f"Authorization: Bearer {user}") == 403
        assert await get("/metrics", f"Authorization: Bearer {operator}") == 200


async def test_metrics_are_for_operators_certificates(folder: Path) -> None:
    ca = Authority(folder)
    operator = ca.issue("op", dns=["op.example"])
    user = ca.issue("user", uris=["spiffe://user"], dns=["op.example"])
    stranger = Authority(folder, "other").issue("stranger", dns=["op.example"])
    async with kept(ca, ca.issue("server"), None, certificates=True) as address:

        async def get(path: str, issued: Issued | None) -> int:
            return (await asked(address, ca, asking(path), issued))[0]

        assert await get("/healthz", None) == 200
        assert [await get("/metrics", who) for who in (None, user, operator)] == [401, 403, 200]
        assert await asked_raw(address, ca, stranger) == b""


async def asked_raw(address: TcpAddress, ca: Authority, issued: Issued) -> bytes:
    context = ssl.create_default_context(cafile=str(ca.path))
    context.load_cert_chain(issued.cert, issued.key)
    reader, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
    try:
        writer.write(asking("/metrics"))
        return await asyncio.wait_for(reader.read(), 10)
    except OSError:  # an alert of TLS
        return b""
    finally:
        writer.close()


async def test_who_shakes_no_hands_keeps_nobody_out(folder: Path) -> None:
    ca = Authority(folder)
    async with kept(ca, ca.issue("server"), None) as address:
        silent: list[Any] = []
        for _ in range(12):
            silent.append(await asyncio.open_connection(address.host, address.port))
        assert (await asked(address, ca, asking("/healthz")))[0] == 200
        for _, writer in silent:
            writer.write(asking("/metrics"))  # in the clear
        for reader, writer in silent:
            with suppress(ConnectionError):
                assert b"x 1.0" not in await asyncio.wait_for(reader.read(), 10)
            writer.close()
        assert (await asked(address, ca, asking("/healthz")))[0] == 200


async def test_loopback_metrics_stay_in_the_clear_beside_tls(folder: Path) -> None:
    ca, tokens = Authority(folder), Tokens(folder)
    server = ca.issue("server")
    settings: dict[str, Any] = {
        "tls_cert": str(server.cert),
        "tls_key": str(server.key),
        "tokens": str(tokens.path),
    }
    config_for(metrics="0.0.0.0:0", **settings)
    async with running(settings=settings) as run:
        reader, writer = await asyncio.open_connection(run.metrics.host, run.metrics.port)
        writer.write(asking("/metrics"))
        assert parted(await reader.read())[0] == 200
        writer.close()
    async with running(settings=settings | {"metrics": "0.0.0.0:0"}) as run:
        address = TcpAddress("127.0.0.1", run.metrics.port)
        assert (await asked(address, ca, asking("/metrics")))[0] == 401


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:1/metrics"),
        ("localhost", "http://localhost:1/metrics"),
        ("0.0.0.0", "https://0.0.0.0:1/metrics"),
        ("::", "https://[::]:1/metrics"),
    ],
)
def test_the_ready_line_says_how_metrics_are_asked_for(host: str, url: str) -> None:
    assert ready_line([], TcpAddress(host, 1)).endswith(f"metrics {url}")

"""A real Envoy before the daemon: TLS to clients, a certificate to the daemon, tokens passed on."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from bench.peers.contestants import free_port
from sapwood import AsyncClient, Delta, PermissionDenied, SapwoodError, Unauthenticated
from sapwood.daemon.settings.principals import Role
from tests.daemon.certificates import Authority, Issued
from tests.daemon.conftest import running
from tests.daemon.fakes import FakeDevice
from tests.daemon.tenants import Tokens
from tests.system.envoys import envoy

pytestmark = [pytest.mark.anyio, pytest.mark.outside("envoy")]

API = "type.googleapis.com/envoy.extensions"
TLS = f"{API}.transport_sockets.tls.v3"
STARTING_S_MAX = 30
LONG_S = 18  # longer than a route of Envoy's has by itself


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def certificate_of(issued: Issued) -> dict[str, Any]:
    chain, key = {"filename": str(issued.cert)}, {"filename": str(issued.key)}
    return {"tls_certificates": [{"certificate_chain": chain, "private_key": key}]}


def configuration(
    ports: tuple[int, int], ca: Path, front: Issued, client: Issued, timeout: dict[str, str]
) -> dict[str, Any]:
    """ports: Envoy's and the daemon's. As docs/tenants.md has it."""
    listener, cluster = listener_of(ports[0], front, timeout), cluster_of(ports[1], ca, client)
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def place(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def tls(kind: str, **context: Any) -> dict[str, Any]:
    typed = {"@type": f"{TLS}.{kind}", **context}
    return {"name": "envoy.transport_sockets.tls", "typed_config": typed}


def listener_of(port: int, front: Issued, timeout: dict[str, str]) -> dict[str, Any]:
    route = {"match": {"prefix": "/"}, "route": {"cluster": "sapwood", **timeout}}
    host = {"name": "sapwood", "domains": ["*"], "routes": [route]}
    router = {"@type": f"{API}.filters.http.router.v3.Router"}
    manager = {
        "@type": f"{API}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "sapwood",
        "codec_type": "HTTP2",
        "route_config": {"virtual_hosts": [host]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
    }
    http = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
    common = {**certificate_of(front), "alpn_protocols": ["h2"]}
    secured = tls("DownstreamTlsContext", common_tls_context=common)
    return {
        "address": place(port),
        "filter_chains": [{"filters": [http], "transport_socket": secured}],
    }


def cluster_of(port: int, ca: Path, client: Issued) -> dict[str, Any]:
    http2 = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    explicit: dict[str, Any] = {"explicit_http_config": {"http2_protocol_options": {}}}
    common = {
        **certificate_of(client),
        "alpn_protocols": ["h2"],
        "validation_context": {"trusted_ca": {"filename": str(ca)}},
    }
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": place(port)}}]}]
    return {
        "name": "sapwood",
        "type": "STATIC",
        "load_assignment": {"cluster_name": "sapwood", "endpoints": endpoints},
        "typed_extension_protocol_options": {
            http2: {"@type": f"type.googleapis.com/{http2}", **explicit}
        },
        "transport_socket": tls("UpstreamTlsContext", sni="localhost", common_tls_context=common),
    }


@asynccontextmanager
async def proxied(config: dict[str, Any], port: int, folder: Path) -> AsyncIterator[str]:
    """Envoy's address, once it accepts."""
    file = folder / "envoy.json"
    file.write_text(json.dumps(config))
    with envoy(file) as process:
        until = time.monotonic() + STARTING_S_MAX
        while True:
            try:
                await (await anyio.connect_tcp("127.0.0.1", port)).aclose()
                break
            except OSError:
                told = (folder / "envoy.log").read_text()[-2000:]
                assert process.poll() is None and time.monotonic() < until, told
                await anyio.sleep(0.1)
        yield f"127.0.0.1:{port}"


class Slow(FakeDevice):
    """A token every twentieth of a second."""

    def wait(self, plan: Any) -> Any:
        time.sleep(0.05)
        return super().wait(plan)


@pytest.mark.parametrize("timeout", [{"timeout": "0s"}, {}], ids=["as documented", "by itself"])
async def test_behind_envoy(timeout: dict[str, str], tmp_path: Path) -> None:
    ca, tokens = Authority(tmp_path), Tokens(tmp_path)
    server, front = ca.issue("server"), ca.issue("front")
    gateway = ca.issue("gateway", uris=["spiffe://mesh/gateway"])
    user, operator = tokens.new("alice"), tokens.new("root", Role.OPERATOR)
    settings = {
        "tls_cert": str(server.cert),
        "tls_key": str(server.key),
        "tls_client_ca": str(ca.path),
        "tokens": str(tokens.path),
    }
    port = free_port()
    async with running(Slow(), settings=settings) as run:
        ports = port, int(run.address.rpartition(":")[2])
        config = configuration(ports, ca.path, front, gateway, timeout)
        async with proxied(config, port, tmp_path) as address:
            async with AsyncClient(address, tls_ca=ca.path, token=user) as client:
                assert await client.is_serving()
                with pytest.raises(PermissionDenied):
                    await client.cache_stats()
                tokens_wanted = LONG_S * 20
                began, got = time.monotonic(), 0
                stream = client.generate([5, 6, 7], max_tokens=tokens_wanted, draft_tokens=0)
                try:
                    async for event in stream:
                        got += len(event.token_ids) if isinstance(event, Delta) else 0
                except SapwoodError:
                    assert not timeout
                    assert 14 < time.monotonic() - began < 17
                else:
                    assert timeout and got == tokens_wanted
                    assert time.monotonic() - began > 15
            async with AsyncClient(address, tls_ca=ca.path, token=operator) as client:
                await client.cache_stats()
            async with AsyncClient(address, tls_ca=ca.path, token=user[:-1]) as client:
                with pytest.raises(Unauthenticated):
                    await client.get_model()
            async with AsyncClient(address, tls_ca=ca.path) as client:  # then it is Envoy's own
                assert (await client.get_model()).name == "fake"
                with pytest.raises(PermissionDenied):
                    await client.cache_stats()

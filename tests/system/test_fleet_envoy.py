"""The fleet's Envoys as they are shipped: TLS with certificates on both sides of SMG and worker.

What is changed of the files in examples/fleet is where things lie on this machine.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from bench.peers.contestants import free_port
from tests.daemon.certificates import Authority
from tests.daemon.process.processes import ROOT, wait_for
from tests.system.envoys import envoy
from tests.system.fleet import Fleet, fleet_of, prompt_of

pytestmark = [pytest.mark.outside("envoy", "smg"), pytest.mark.timeout(180)]


@contextmanager
def shipped(name: str, folder: Path, port: int, **changes: str) -> Iterator[None]:
    """examples/fleet/NAME with these changes, of which each must be there; until it listens."""
    text = (ROOT / "examples/fleet" / name).read_text().replace("/etc/sapwood", str(folder))
    for old, new in changes.items():
        assert old.removeprefix("_") in text, f"{name} has no {old}"
        text = text.replace(old.removeprefix("_"), new)
    file = folder / name
    file.write_text(text)
    with envoy(file) as process:
        wait_for(lambda: listens(port, process))
        yield


def listens(port: int, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "its log says why"
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def issued(folder: Path, client: str) -> Path:
    """Certificates of a fleet; the gateway's names `client`. Returns the authority's."""
    authority = Authority(folder)
    authority.issue("worker", dns=["worker1.lan"], ips=[])
    authority.issue("gateway", dns=[client], ips=[])
    return authority.path


@contextmanager
def secured(fleet: Fleet, folder: Path, client: str = "gateway.lan") -> Iterator[tuple[int, Path]]:
    """Both Envoys before the one worker, whose URL is then theirs; the outer port, and the CA."""
    ca, front, outer = issued(folder, client), free_port(), free_port()
    inner = fleet.workers[0].gateway.rpartition(":")[2]
    with ExitStack() as stack:
        to_daemon = {"_50553": str(outer), "_50552": inner}
        stack.enter_context(shipped("envoy-worker.yaml", folder, outer, **to_daemon))
        address = "{address: worker1.lan, port_value: 50553}"
        to_worker = {address: f"{{address: 127.0.0.1, port_value: {outer}}}", "_50561": str(front)}
        stack.enter_context(shipped("envoy-gateway.yaml", folder, front, **to_worker))
        fleet.workers[0].gateway = f"127.0.0.1:{front}"
        yield outer, ca


def test_between_gateway_and_worker_is_tls_that_both_prove_themselves_in(tmp_path: Path) -> None:
    with fleet_of(tmp_path, 1) as fleet, secured(fleet, tmp_path) as (port, ca):
        fleet.start_gateway()
        first = fleet.gateway.complete(prompt_of(1))
        again = fleet.gateway.complete(f"{prompt_of(1)} and then")
        assert first["prompt_tokens_details"]["cached_tokens"] == 0
        assert again["prompt_tokens_details"]["cached_tokens"] > again["prompt_tokens"] / 2
        wait_for(lambda: sent_by_events(fleet))
        assert not lets_in(port, ca, None), "without a certificate nobody comes so far"
        stranger = Authority(tmp_path, "other").issue("stranger")
        assert not lets_in(port, ca, stranger.cert)
        known = ca.parent / "worker.pem"
        assert not lets_in(port, ca, known), "signed, but not the gateway's"
        assert lets_in(port, ca, ca.parent / "gateway.pem")


def sent_by_events(fleet: Fleet) -> bool:
    """Whether SMG sends a request where the worker's events said that its beginning lies."""
    fleet.gateway.complete(f"{prompt_of(1)} or else")
    return fleet.gateway.counted("smg_cache_aware_policy_branch_total", 'branch="event_hit"') > 0


def lets_in(port: int, ca: Path, certificate: Path | None) -> bool:
    """Whether HTTP/2 begins: a server says its settings first."""
    context = ssl.create_default_context(cafile=str(ca))
    context.set_alpn_protocols(["h2"])
    if certificate is not None:
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    with socket.create_connection(("127.0.0.1", port), timeout=20) as plain:
        try:
            with context.wrap_socket(plain, server_hostname="worker1.lan") as secure:
                secure.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
                return bool(secure.recv(1))
        except (ssl.SSLError, ConnectionError):
            return False

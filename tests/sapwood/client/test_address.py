"""Where a client looks for its daemon."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sapwood.client.address import default_socket, parse, resolve


@pytest.mark.parametrize(
    "address",
    ["unix:/run/x.sock", "unix:x.sock", "127.0.0.1:0", "localhost:65535", "[::1]:50551"],
)
def test_address_is_a_socket_or_host_and_port(address: str) -> None:
    assert parse(address) == address


@pytest.mark.parametrize(
    "address",
    ["", "unix:", "unix:///x", "localhost", "localhost:", ":1", "h:65536", "http://h:1", "::1:5"],
)
def test_anything_else_is_refused_with_its_name(address: str) -> None:
    with pytest.raises(ValueError, match="neither unix:PATH nor HOST:PORT"):
        parse(address)


def test_default_socket_prefers_the_runtime_directory() -> None:
    assert default_socket({"XDG_RUNTIME_DIR": "/run/u", "HOME": "/h"}) == Path(
        "/run/u/sapwood.sock"
    )
    assert default_socket({"HOME": "/h"}) == Path("/h/.sapwood/sapwood.sock")


@pytest.fixture
def runtime(tmp_path: Path) -> dict[str, str]:
    return {"XDG_RUNTIME_DIR": str(tmp_path)}


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "sapwood.sock"))
        listener.listen()
        yield listener


def test_order_is_argument_environment_socket_tcp(
    runtime: dict[str, str], listener: socket.socket, tmp_path: Path
) -> None:
    environ = runtime | {"SAPWOOD_ADDRESS": "host:2"}
    assert resolve("host:1", environ) == "host:1"
    assert resolve(None, environ) == "host:2"
    assert resolve(None, runtime) == f"unix:{tmp_path}/sapwood.sock"


def test_without_a_socket_it_is_tcp(runtime: dict[str, str]) -> None:
    assert resolve(None, runtime) == "127.0.0.1:50551"


def test_socket_left_by_a_killed_daemon_is_passed_over(
    runtime: dict[str, str], listener: socket.socket, tmp_path: Path
) -> None:
    listener.close()
    assert (tmp_path / "sapwood.sock").exists()
    assert resolve(None, runtime) == "127.0.0.1:50551"

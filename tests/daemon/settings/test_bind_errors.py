"""What a daemon says of an address that it cannot listen on: the cause, each by its own words."""

from __future__ import annotations

import dataclasses
import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from sapwood.daemon.errors import StartError
from sapwood.daemon.process import servers
from sapwood.daemon.process.server import Daemon
from sapwood.daemon.settings.addresses import Address, TcpAddress, UnixAddress
from sapwood.daemon.settings.bind_errors import require_bindable
from sapwood.scheduler.limits import Limits
from tests.daemon.conftest import config_for
from tests.daemon.fakes import FakeDevice, make_loader

ELSEWHERE = TcpAddress("192.0.2.7", 1)  # of the addresses that are kept for documents
NOBODY = TcpAddress("nobody.invalid", 1)
CAUSES = {
    ELSEWHERE: "this machine does not have the address",
    NOBODY: "the name is not known here",
}


def taken() -> tuple[socket.socket, TcpAddress]:
    holder = socket.socket()
    holder.bind(("127.0.0.1", 0))
    holder.listen()
    return holder, TcpAddress("127.0.0.1", holder.getsockname()[1])


async def refusal(**settings: object) -> str:
    config = dataclasses.replace(config_for(), **settings)  # type: ignore[arg-type]
    daemon = Daemon(config, make_loader(FakeDevice(), Limits()))
    with pytest.raises(StartError) as caught:
        await daemon.start()
    await daemon.stop()
    return str(caught.value)


@pytest.mark.anyio
@pytest.mark.parametrize("place", ["listen", "metrics"])
async def test_each_cause_is_named_and_in_use_is_said_of_nothing_else(place: str) -> None:
    holder, used = taken()
    with holder:
        for address, cause in {used: "it is in use", **CAUSES}.items():
            given = (address,) if place == "listen" else address
            assert await refusal(**{place: given}) == f"cannot listen on {address}: {cause}"


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        (lambda folder: folder / "missing" / "s", "its folder is missing"),
        (lambda folder: folder / ("x" * 120), "the path is too long for a socket"),
        (lambda folder: folder / "file" / "s", os.strerror(errno.ENOTDIR)),
    ],
)
def test_the_causes_of_a_unix_socket(
    path: Callable[[Path], Path], cause: str, folder: Path
) -> None:
    (folder / "file").touch()
    address = UnixAddress(path(folder))
    assert refused(address) == f"cannot listen on {address}: {cause}"


@pytest.mark.parametrize("address", [TcpAddress("127.0.0.1", 80), UnixAddress(Path("/s"))])
def test_what_is_not_permitted_is_said_so(
    address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forbidden(socket.socket):
        def bind(self, _place: object) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(socket, "socket", Forbidden)
    assert refused(address) == f"cannot listen on {address}: Permission denied"


def refused(address: Address) -> str:
    with pytest.raises(StartError) as caught:
        require_bindable(address, address)
    return str(caught.value)


def test_one_socket_of_several_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for gRPC: localhost is two addresses, of which a machine may have one."""
    inet = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    listed = [(*inet, (ELSEWHERE.host, 0)), (*inet, ("127.0.0.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: listed)
    require_bindable(TcpAddress("localhost", 0), TcpAddress("localhost", 0))
    del listed[1]
    assert "does not have the address" in refused(TcpAddress("localhost", 0))


def test_the_look_leaves_nothing(folder: Path) -> None:
    for address in (UnixAddress(folder / "s"), TcpAddress("127.0.0.1", 0)):
        require_bindable(address, address)
    assert list(folder.iterdir()) == []


@pytest.mark.anyio
async def test_what_keeps_grpc_off_after_the_look_is_named_or_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[Address] = []
    monkeypatch.setattr(servers, "require_bindable", lambda address, _: looks.append(address))
    assert await refusal(listen=(ELSEWHERE,)) == (
        f"cannot listen on {ELSEWHERE}: what kept it off is gone, so try again"
    )
    assert looks == [ELSEWHERE, ELSEWHERE]

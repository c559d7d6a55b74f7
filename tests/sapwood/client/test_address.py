"""How both sides read an address, and where a client looks for its daemon."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import sapwood
from sapwood.client.address import UnixAddress, default_socket, resolve
from sapwood.daemon.errors import UsageError
from sapwood.daemon.settings.addresses import parse_listening
from tests.sapwood.client.fake import FakeDaemon, serving

HOME = str(Path.home())
READ_AS = {
    "unix:/run/x.sock": "unix:/run/x.sock",
    "unix:///run/x.sock": "unix:/run/x.sock",
    "unix:////run/x.sock": "unix:/run/x.sock",
    "unix:/run/a/../x.sock": "unix:/run/x.sock",
    "unix:x.sock": f"unix:{Path.cwd()}/x.sock",
    "unix:~/x.sock": f"unix:{HOME}/x.sock",
    "unix:/run/a%41?b#c:1.sock": "unix:/run/a%41?b#c:1.sock",
    "127.0.0.1:50551": "127.0.0.1:50551",
    "localhost:65535": "localhost:65535",
    "LocalHost:00080": "localhost:80",
    "[::1]:50551": "[::1]:50551",
    "[0:0::0001]:1": "[::1]:1",
}
REFUSED = {
    **dict.fromkeys(
        [
            *("", "localhost", "127.0.0.1", "::1", "localhost:", ":1", "h:65536", "h:-1", "h:+1"),
            *(
                "h:1e3",
                "h:100000",
                "h: 1",
                "h:1\n",
                "h:\u0661",
                "h:1:2",
                "::1:5",
                "[::1]",
                "[::1:5",
            ),
            *("::1]:5", "[127.0.0.1]:5", "[h]:5", "[::1%lo]:5", "[:::]:5", "http://h:1", "//h:1"),
            *("dns:h:1", "dns:///h", "dns:///127.0.0.1:5", "ipv4:127.0.0.1:5", "ipv6:[::1]:5"),
            *("unix-abstract:x", "vsock:1:2", "user@h:1"),
        ],
        "neither unix:PATH nor HOST:PORT",
    ),
    **dict.fromkeys(["unix:", "unix:/", "unix:.", "unix:/x/..", "unix:///"], "path of a socket"),
    "unix:/x\0y": "path of a socket",
    **dict.fromkeys(["unix://", "unix://x.sock", "unix://~/x"], "needs an absolute path"),
    "unix:~of-nobody-here/x": "in the home of nobody",
    "unix:/" + "x" * 100: "at most 100 bytes",
}


def as_a_client(text: str) -> str:
    with sapwood.Client(text) as client:
        return client.address


def as_the_daemon(text: str) -> str:
    return str(parse_listening(text).address)


@pytest.mark.parametrize("side", [as_a_client, as_the_daemon])
@pytest.mark.parametrize("text", READ_AS)
def test_both_sides_read_an_address_alike(side: Callable[[str], str], text: str) -> None:
    assert side(text) == READ_AS[text]
    assert side(READ_AS[text]) == READ_AS[text]


@pytest.mark.parametrize("side", [as_a_client, as_the_daemon])
@pytest.mark.parametrize("text", REFUSED)
def test_both_sides_refuse_what_is_none(side: Callable[[str], str], text: str) -> None:
    with pytest.raises((ValueError, UsageError), match=REFUSED[text]):
        side(text)


def test_where_the_sides_differ_on_purpose() -> None:
    """A daemon takes any free port."""
    assert as_the_daemon("localhost:0") == "localhost:0"
    with pytest.raises(ValueError, match="port 0 is any free one"):
        as_a_client("localhost:0")
    assert as_a_client("example.org:1") == as_the_daemon("example.org:1") == "example.org:1"
    with pytest.raises(TypeError, match="target must be a string, not PosixPath"):
        sapwood.Client(Path("/x"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["%41.sock", "a?b.sock", "a#b c.sock", "\u00fc.sock", "\udcff.sock"]
)
def test_a_socket_lies_where_its_path_says(daemon: FakeDaemon, tmp_path: Path, name: str) -> None:
    """gRPC takes a target for a URI: it would cut it at `?` and decode `%41`."""
    address = UnixAddress(tmp_path / name)
    with serving(daemon, address.target), sapwood.Client(str(address)) as client:
        assert (tmp_path / name).is_socket()
        assert client.is_serving()


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
    assert str(resolve("host:1", environ)) == "host:1"
    assert str(resolve(None, environ)) == "host:2"
    assert str(resolve(None, runtime)) == f"unix:{tmp_path}/sapwood.sock"
    assert str(resolve(None, runtime | {"SAPWOOD_ADDRESS": ""})).startswith("unix:")


def test_without_a_socket_it_is_tcp(runtime: dict[str, str]) -> None:
    assert str(resolve(None, runtime)) == "127.0.0.1:50551"


def test_socket_left_by_a_killed_daemon_is_passed_over(
    runtime: dict[str, str], listener: socket.socket, tmp_path: Path
) -> None:
    listener.close()
    assert (tmp_path / "sapwood.sock").exists()
    assert str(resolve(None, runtime)) == "127.0.0.1:50551"

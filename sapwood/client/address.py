"""Where a daemon listens: `unix:PATH` or `HOST:PORT`, and where to look if nobody says.

- One parser for both sides: what the daemon can be told to listen on, a client can be told too.
  `unix:///PATH` is `unix:/PATH`, `~` is the home folder, a relative path begins in this process's.
- An address is written in one way, whatever it was read from, so that equal ones are equal.
- Order: explicit argument, environment SAPWOOD_ADDRESS, the default socket if a daemon accepts
  there, else 127.0.0.1:50551.
- The daemon takes its defaults from here too, so that both sides agree.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

DEFAULT_TCP = "127.0.0.1:50551"
# sun_path is 104 bytes on macOS, 108 on Linux; a daemon binds beside, by up to 3 bytes more.
SOCKET_PATH_BYTES_MAX = 100
_ENVIRONMENT_KEY = "SAPWOOD_ADDRESS"
_PROBE_S = 1.0
# An IPv6 host stands in brackets, else nobody knows where it ends.
_TCP = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<name>[A-Za-z0-9._-]+)):(?P<port>[0-9]{1,5})")
_PORT_MAX = 65535


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """host: a name in lower case, or a number without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def target(self) -> str:
        """As gRPC takes it."""
        return str(self)


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """path: absolute."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"

    @property
    def target(self) -> str:
        """As gRPC takes it, to whom it is a URI: it would cut a path at `?`, and decode `%41`."""
        return f"unix:{quote(os.fsencode(self.path))}"


Address = TcpAddress | UnixAddress


def parse(text: str) -> Address:
    """`unix:PATH` or `HOST:PORT`; raises ValueError, with the address, for anything else."""
    scheme, _, rest = text.partition(":")
    if scheme == "unix":
        return UnixAddress(_socket_path(rest, text))
    match = _TCP.fullmatch(text)
    host = (match["name"] or _ipv6(match["v6"])) if match else ""
    if match is None or not host or int(match["port"]) > _PORT_MAX:
        raise ValueError(f"address {text!r} is neither unix:PATH nor HOST:PORT")
    return TcpAddress(host.lower(), int(match["port"]))


def _ipv6(text: str) -> str:
    """In its shortest form; empty where it is none."""
    try:
        return str(ipaddress.IPv6Address(text))
    except ValueError:
        return ""


def _socket_path(text: str, address: str) -> Path:
    if text.startswith("//"):  # gRPC's other form, where a host would stand before the path
        text = text[2:]
        if not text.startswith("/"):
            raise ValueError(f"address {address!r} needs an absolute path behind unix://")
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"address {address!r} is in the home of nobody") from None
    if not text or "\0" in text or path.name in ("", ".", ".."):
        raise ValueError(f"address {address!r} needs the path of a socket")
    path = Path("/" + os.path.abspath(path).lstrip("/"))  # POSIX keeps two slashes at the front
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        raise ValueError(f"the path of a unix socket has at most {SOCKET_PATH_BYTES_MAX} bytes")
    return path


def default_socket(environ: Mapping[str, str]) -> Path:
    """Where the daemon puts its socket: in XDG_RUNTIME_DIR, else in ~/.sapwood."""
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime, "sapwood.sock")
    home = environ.get("HOME")
    return Path(home or Path.home(), ".sapwood", "sapwood.sock")


def resolve(explicit: str | None, environ: Mapping[str, str]) -> Address:
    """What a client connects to. Raises ValueError, and TypeError for what is no string."""
    given = environ.get(_ENVIRONMENT_KEY) or None if explicit is None else explicit
    if given is not None:
        return _to_connect_to(given)
    path = default_socket(environ)
    return parse(f"unix:{path}" if _accepts(path) else DEFAULT_TCP)


def _to_connect_to(given: str) -> Address:
    if not isinstance(given, str):
        raise TypeError(f"target must be a string, not {type(given).__name__}")
    address = parse(given)
    if isinstance(address, TcpAddress) and address.port == 0:
        raise ValueError(f"address {given!r}: port 0 is any free one, for a daemon to listen on")
    return address


def _accepts(path: Path) -> bool:
    """Asks by connecting: a daemon that was killed leaves its socket file behind."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True

"""Where a daemon listens: `unix:PATH` or `HOST:PORT`, and where to look if nobody says.

- Order: explicit argument, environment SAPWOOD_ADDRESS, the default socket if a daemon accepts
  there, else 127.0.0.1:50551.
- The daemon takes its defaults from here too, so that both sides agree.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from pathlib import Path

DEFAULT_TCP = "127.0.0.1:50551"
_ENVIRONMENT_KEY = "SAPWOOD_ADDRESS"
_PROBE_S = 1.0
_ADDRESS = re.compile(
    r"unix:(?!//)[^\0]+|(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})"
)


def parse(address: str) -> str:
    """The address, checked. ValueError if it is neither `unix:PATH` nor `HOST:PORT`."""
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match["port"] or 0) > 65535:
        raise ValueError(f"address {address!r} is neither unix:PATH nor HOST:PORT")
    return address


def default_socket(environ: Mapping[str, str]) -> Path:
    """Where the daemon puts its socket: in XDG_RUNTIME_DIR, else in ~/.sapwood."""
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime, "sapwood.sock")
    home = environ.get("HOME")
    return Path(home or Path.home(), ".sapwood", "sapwood.sock")


def resolve(explicit: str | None, environ: Mapping[str, str]) -> str:
    """The address that a client connects to."""
    if address := explicit or environ.get(_ENVIRONMENT_KEY):
        return parse(address)
    path = default_socket(environ)
    return f"unix:{path}" if _accepts(path) else DEFAULT_TCP


def _accepts(path: Path) -> bool:
    """Asks by connecting: a daemon that was killed leaves its socket file behind."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True

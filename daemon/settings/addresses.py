"""Where the daemon listens, and who may reach it there.

- A unix socket is 0600, made in a folder that nobody else may enter; TCP is loopback only, because
  neither TLS nor tokens are built: a wider address is refused, never served in the clear.
- A socket file that nobody answers on is stale and removed; one that answers is never stolen.
- gRPC removes whatever socket stands at the path that it binds, before it binds and when it closes,
  without a look at whose it is. So it binds beside, under a name that nobody else uses, and
  the socket is linked into its place: the place is ours alone to give and to clear.
- How addresses are read and written is in sapwood/client/address.py, for both sides.
- Port 0 means any free port; the real one is known after the bind.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from sapwood.client.address import DEFAULT_TCP, default_socket, parse
from sapwood.client.address import Address as Address
from sapwood.client.address import TcpAddress as TcpAddress
from sapwood.client.address import UnixAddress as UnixAddress
from sapwood.daemon.errors import StartError, UsageError
from sapwood.daemon.own_files import Identity, identity_of, remove_own


def parse_address(text: str) -> Address:
    """`unix:PATH` or a loopback `HOST:PORT`; raises UsageError for anything else."""
    try:
        address = parse(text)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return _on_loopback(address) if isinstance(address, TcpAddress) else address


def parse_tcp(text: str) -> TcpAddress:
    """A loopback `HOST:PORT`; raises UsageError for anything else."""
    return _on_loopback(parse_any_tcp(text))


def parse_any_tcp(text: str) -> TcpAddress:
    """`HOST:PORT`, which whoever serves there has to protect; raises UsageError."""
    with suppress(ValueError):
        address = parse(text)
        if isinstance(address, TcpAddress):
            return address
    raise UsageError(f"{text!r} is not HOST:PORT")


def _on_loopback(address: TcpAddress) -> TcpAddress:
    if not is_loopback(address.host):
        raise UsageError(
            f"'{address}' is not a loopback address; serving the network needs TLS and tokens, "
            "which are not built yet"
        )
    return address


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def default_listeners(environ: Mapping[str, str]) -> tuple[Address, ...]:
    """Where clients look if nobody says: the socket, then loopback."""
    return (parse_address(f"unix:{default_socket(environ)}"), parse_tcp(DEFAULT_TCP))


def prepare_socket(address: UnixAddress) -> None:
    """Make the folder and clear a stale socket file, so that a bind can succeed."""
    try:
        address.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = address.path.lstat().st_mode
        found = identity_of(address.path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StartError(f"cannot use {address}: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise StartError(f"{address.path} exists and is not a socket")
    if _answers(address.path):
        raise StartError(f"another daemon answers on {address}")
    remove_own(address.path, found)  # and not what another daemon put there meanwhile


def aside_of(address: UnixAddress) -> UnixAddress:
    """Where to bind first: in the same folder, with a name that is free and short."""
    while True:
        path = address.path.with_name(f".{secrets.token_urlsafe(2)}")
        if not os.path.lexists(path):
            return UnixAddress(path)


def take_place(aside: UnixAddress, address: UnixAddress) -> Identity:
    """Put a bound socket, for its owner only, where it is looked for. Raises StartError."""
    try:
        aside.path.chmod(0o600)
        ours = identity_of(aside.path)
        try:
            os.link(aside.path, address.path)  # and not renamed: that would take another's place
        except FileExistsError:
            raise StartError(f"another daemon came first on {address}") from None
        except OSError:  # a file system without links
            aside.path.rename(address.path)
    except OSError as error:
        raise StartError(f"cannot use {address}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            aside.path.unlink(missing_ok=True)
    return ours


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True  # busy, or not ours to judge: never steal it
        return True


@contextmanager
def owner_only() -> Iterator[None]:
    """Files made inside are readable by their owner only, from the first moment on."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)

"""Why an address cannot be listened on, in words of ours.

- gRPC says only that it failed, beside a line of its own on stderr; so the system is asked before,
  by binding for a moment. An address of several sockets (localhost) needs one of them.
- In use is what the system calls so, and nothing else.
"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress

from sapwood.daemon.errors import StartError
from sapwood.daemon.settings.addresses import Address, TcpAddress, UnixAddress

_CAUSES = {
    errno.EADDRINUSE: "it is in use",
    errno.EADDRNOTAVAIL: "this machine does not have the address",
    errno.EAFNOSUPPORT: "this machine does not have the address",
    errno.ENOENT: "its folder is missing",
    errno.ENAMETOOLONG: "the path is too long for a socket",
}


def require_bindable(address: Address, bound: Address) -> None:
    """Raises StartError for `address`, which is `bound` to the system. Leaves nothing."""
    try:
        if isinstance(bound, UnixAddress):
            _bind(socket.AF_UNIX, os.fspath(bound.path))
            with suppress(OSError):
                bound.path.unlink()
        else:
            _bind_one(bound)
    except OSError as error:
        raise not_bound(address, error) from error


def not_bound(address: Address, error: OSError) -> StartError:
    """What to say where the system said `error`."""
    if isinstance(error, socket.gaierror):
        cause = "the name is not known here"
    else:
        cause = _CAUSES.get(error.errno or 0) or error.strerror or str(error)
    return StartError(f"cannot listen on {address}: {cause}")


def _bind_one(address: TcpAddress) -> None:
    errors = []
    for family, *_, place in socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM
    ):
        try:
            return _bind(family, place)
        except OSError as error:
            errors.append(error)
    raise errors[0]


def _bind(family: int, place: object) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if family != socket.AF_UNIX:  # as gRPC: a port whose last connections linger is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(place)  # type: ignore[arg-type]
        except OSError as error:
            if error.errno is None:  # Python's own, before it asks the system
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG)) from None
            raise

"""The sockets of a TCP address: one for each protocol that its host name stands for.

- All have the same port, also where any free one will do: who reads "localhost:40123" may come by
  either protocol.
- A protocol that this machine does not have is left out, as long as there is another.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Sequence

from sapwood.daemon.settings.addresses import TcpAddress

_TRIES = 16  # of free ports that one protocol had and the other had not
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


async def listeners(address: TcpAddress) -> list[socket.socket]:
    """They listen, and do not block. At least one. Raises OSError, with none left open."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    places = list(dict.fromkeys((family, place[0]) for family, _, _, _, place in found))
    for tries_left in reversed(range(_TRIES)):
        try:
            return _bound(places, address.port)
        except OSError as error:
            if address.port or error.errno != errno.EADDRINUSE or not tries_left:
                raise
    raise AssertionError("the last try returned or raised")


def _bound(
    places: Sequence[tuple[socket.AddressFamily, str | int]], port: int
) -> list[socket.socket]:
    made: list[socket.socket] = []
    failed: OSError | None = None
    try:
        for family, host in places:
            try:
                made.append(_listener(family, str(host), port))
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                failed = error
                continue
            port = made[0].getsockname()[1]
        if not made:
            raise failed or OSError("the name stands for no address")
    except OSError:
        for listener in made:
            listener.close()
        raise
    return made


def _listener(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((host, port))
        made.listen()
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made

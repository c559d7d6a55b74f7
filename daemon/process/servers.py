"""The gRPC servers of a daemon, one for each address, so that each knows who comes by it.

- A unix socket stands for `local`, or for the principal that was named with it. Loopback TCP stands
  for `local` where neither tokens nor client certificates are in use; else TCP stands for nobody.
- With TLS every TCP address has it, loopback too.
- Our sockets' files can be removed while the servers still answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import grpc

from sapwood.daemon.errors import StartError
from sapwood.daemon.own_files import Identity, remove_own
from sapwood.daemon.process.credentials import Credentials, server_credentials
from sapwood.daemon.rpc.callers import Callers
from sapwood.daemon.rpc.guard import Entry, Guard
from sapwood.daemon.rpc.services import make_server
from sapwood.daemon.rpc.watch import CallWatch
from sapwood.daemon.settings.addresses import (
    Address,
    TcpAddress,
    UnixAddress,
    aside_of,
    is_loopback,
    owner_only,
    prepare_socket,
    take_place,
)
from sapwood.daemon.settings.bind_errors import require_bindable
from sapwood.daemon.settings.config import Config
from sapwood.daemon.settings.principals import LOCAL


class Servers:
    """Of one daemon. Made in its event loop."""

    def __init__(
        self, config: Config, handlers: Sequence[grpc.GenericRpcHandler], watch: CallWatch
    ) -> None:
        self._config = config
        self._handlers = handlers
        self._watch = watch
        self._servers: list[grpc.aio.Server] = []
        self._sockets: list[tuple[Path, Identity]] = []

    def bind(self, callers: Callers, credentials: Credentials) -> tuple[Address, ...]:
        """Listen; the addresses in flag order, with their real ports. Raises StartError."""
        return tuple(self._bind(each, callers, credentials) for each in self._config.listen)

    def bind_plain(self, server: grpc.aio.Server, address: TcpAddress) -> TcpAddress:
        """Listen for another contract, in plaintext: where, with its port. Raises StartError."""
        self._servers.append(server)
        return TcpAddress(address.host, _add_port(server, address, address))

    async def start(self) -> None:
        """Answer."""
        for server in self._servers:
            await server.start()

    async def stop(self, grace_s: float) -> None:
        """Take nothing more, and let what is open end for `grace_s`."""
        await asyncio.gather(*(server.stop(grace_s) for server in self._servers))

    def remove_sockets(self) -> None:
        """From here on the paths are the next daemon's."""
        for path, ours in self._sockets:
            remove_own(path, ours)

    def _bind(self, address: Address, callers: Callers, credentials: Credentials) -> Address:
        limits, listeners = self._config.limits, len(self._config.listen)
        guard = Guard(callers, self._entry(address, credentials), limits)
        server = make_server(self._handlers, (self._watch, guard), limits, listeners)
        self._servers.append(server)
        if isinstance(address, TcpAddress):
            secured = None if credentials.tls is None else server_credentials(credentials.tls)
            return TcpAddress(address.host, _add_port(server, address, address, secured))
        prepare_socket(address)
        aside = aside_of(address)
        with owner_only():
            _add_port(server, address, aside)
        self._sockets.append((address.path, take_place(aside, address)))
        return address

    def _entry(self, address: Address, credentials: Credentials) -> Entry:
        if isinstance(address, UnixAddress):
            return Entry(self._config.socket_principals.get(address, LOCAL))
        if credentials.certifies_clients:
            return Entry(None, certificates=True)
        return Entry(LOCAL if is_loopback(address.host) and credentials.tokens is None else None)


def _add_port(
    server: grpc.aio.Server,
    address: Address,
    bound: Address,
    secured: grpc.ServerCredentials | None = None,
) -> int:
    """Listen on `bound`, which is what gRPC calls `address`."""
    require_bindable(address, bound)
    try:
        port = (
            server.add_insecure_port(bound.target)
            if secured is None
            else server.add_secure_port(bound.target, secured)
        )
    except RuntimeError:  # which says that it failed, not why
        port = 0
    if port == 0:
        require_bindable(address, bound)
        raise StartError(f"cannot listen on {address}: what kept it off is gone, so try again")
    return port

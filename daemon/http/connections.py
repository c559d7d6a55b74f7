"""Who is let in to the HTTP endpoint, and for how long: what they hear is for uvicorn and the app.

- One request per connection, and one time for all of it: what is not over then is cut, whether the
  head did not come, or the answer was not read. An answer that goes on has that time again with
  each part of it that was taken (RENEW).
- At most so many connections. One more takes the place of the oldest, which had time enough to ask:
  a crowd that says nothing keeps nobody out.
- With TLS each handshake is a task of its own, in a limited number.
- Only uvicorn's protocol is used, none of its server: that would take the signals, exit the process
  and wake it ten times a second. Nothing is logged through its loggers, which quote requests.
- We accept by ourselves: asyncio's server, when no descriptor is free, writes a traceback for each
  of its hundred tries, every second.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from starlette.types import ASGIApp
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from sapwood.daemon.faults import described
from sapwood.daemon.http.door import CERTIFICATE
from sapwood.scheduler.limits import Limits

RENEW = "renew"  # of what a connection's requests know: a call that gives it its time again

_log = logging.getLogger(__name__)
_RETRY_S = 0.1  # until a descriptor may be free again
TlsContext = Callable[[], ssl.SSLContext]
_SILENT = logging.CRITICAL + 1


class Connections:
    """Lets clients in from start() to close(), each on a connection of its own."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._limits = limits
        self._config = Config(
            app,
            http=H11Protocol,
            interface="asgi3",
            lifespan="off",
            ws="none",
            workers=1,  # and not what the environment says
            forwarded_allow_ips="",
            proxy_headers=False,
            log_config=None,
            log_level=_SILENT,
            access_log=False,
            h11_max_incomplete_event_size=limits.http_head_bytes_max,
        )
        self._config.load()
        self._state = ServerState()
        self._open: dict[_Connection, asyncio.TimerHandle] = {}  # the oldest first
        self._accepting: list[asyncio.Task[None]] = []
        self._greeting: dict[asyncio.Future[Any], None] = {}  # handshakes, the oldest first
        self._tls: TlsContext | None = None

    def start(self, listeners: Sequence[socket.socket], tls: TlsContext | None = None) -> None:
        """Let in who comes to these sockets, on the running loop. Takes them. tls: None is none."""
        self._tls = tls
        for listener in listeners:
            accepting = asyncio.create_task(self._accept(listener))
            # Not before: the loop looks at it until then, by a number that may be another's soon.
            accepting.add_done_callback(partial(_closed, listener))
            self._accepting.append(accepting)

    def close(self) -> None:
        """Let nobody in from the next turn on; what was written leaves. Safe without start()."""
        for accepting in self._accepting:
            accepting.cancel()
        for greeting in list(self._greeting):
            greeting.cancel()
        for connection in self._open:
            connection.transport.close()

    def entered(self, connection: _Connection) -> None:
        """A connection is made."""
        if len(self._open) >= self._limits.http_connections_max:
            self._end(next(iter(self._open)))
        self._open[connection] = self._timer(connection)

    def renewed(self, connection: _Connection) -> None:
        """A connection is as good as new, unless it is over."""
        if (timer := self._open.pop(connection, None)) is not None:
            timer.cancel()
            self._open[connection] = self._timer(connection)

    def left(self, connection: _Connection) -> None:
        """A connection is over, for whatever reason."""
        if (timer := self._open.pop(connection, None)) is not None:
            timer.cancel()

    def _timer(self, connection: _Connection) -> asyncio.TimerHandle:
        loop = asyncio.get_running_loop()
        return loop.call_later(self._limits.http_request_s_max, self._end, connection)

    def _end(self, connection: _Connection) -> None:
        self.left(connection)
        connection.transport.abort()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                peer, _ = await loop.sock_accept(listener)
                if self._tls is None:
                    await loop.connect_accepted_socket(self._connection, peer)
                else:
                    self._greet(peer, self._tls())
            except OSError:  # who came has left again, or no descriptor is free: who waits may wait
                await asyncio.sleep(_RETRY_S)

    def _greet(self, peer: socket.socket, context: ssl.SSLContext) -> None:
        """A handshake beside the others: whoever is slow keeps nobody else waiting."""
        if len(self._greeting) >= self._limits.http_connections_max:
            next(iter(self._greeting)).cancel()
        greeting = asyncio.ensure_future(
            asyncio.get_running_loop().connect_accepted_socket(
                self._connection,
                peer,
                ssl=context,
                ssl_handshake_timeout=self._limits.http_request_s_max,
                ssl_shutdown_timeout=self._limits.http_request_s_max,
            )
        )
        self._greeting[greeting] = None
        greeting.add_done_callback(self._greeted)

    def _greeted(self, greeting: asyncio.Future[Any]) -> None:
        del self._greeting[greeting]
        if not greeting.cancelled():
            greeting.exception()  # of who speaks no TLS: nobody wants to hear of it

    def _connection(self) -> _Connection:
        return _Connection(self, self._config, self._state)


def _closed(listener: socket.socket, accepting: asyncio.Task[None]) -> None:
    listener.close()
    if not accepting.cancelled() and (bug := accepting.exception()) is not None:
        _log.error("HTTP is not served any more: %s", described(bug))


class _Connection(H11Protocol):
    """One connection; hashed as the object that it is."""

    def __init__(self, owner: Connections, config: Config, state: ServerState) -> None:
        super().__init__(config, state, app_state={}, _loop=asyncio.get_running_loop())
        self._owner = owner

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state[CERTIFICATE] = transport.get_extra_info("peercert")
        self.app_state[RENEW] = partial(self._owner.renewed, self)
        self._owner.entered(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.left(self)
        super().connection_lost(exc)

"""The HTTP endpoint: /metrics, /healthz, /readyz, and what else operators are shown.

- GET and HEAD only, one request per connection; who may come, and for how long: connections.py.
- It runs on the event loop on purpose: a loop that hangs must fail its health check.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from email.utils import formatdate
from http import HTTPStatus

from prometheus_client import CollectorRegistry
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sapwood.daemon.faults import described
from sapwood.daemon.http.connections import Connections
from sapwood.daemon.http.door import ScrapeDoor
from sapwood.daemon.http.listeners import listeners
from sapwood.daemon.http.negotiation import encoder_for
from sapwood.daemon.settings.addresses import TcpAddress
from sapwood.daemon.settings.bind_errors import not_bound
from sapwood.scheduler.limits import Limits

_GZIP_LEVEL = 5  # of the text of a scrape little is gained above

HttpAnswer = Callable[[Request], Awaitable[Response]]

_log = logging.getLogger(__name__)


class ScrapeEndpoint:
    """Serves the registry and two health checks over HTTP/1.1."""

    def __init__(
        self,
        registry: CollectorRegistry,
        healthy: Callable[[], bool],
        ready: Callable[[], bool],
        limits: Limits,
        shown: Mapping[str, HttpAnswer] | None = None,
    ) -> None:
        """shown: what answers by other paths, for operators as metrics are."""
        self._door: ScrapeDoor | None = None

        # Coroutines, all of them: what is none runs in a thread, past a loop that hangs.
        async def metrics(request: Request) -> Response:
            encode, content_type = encoder_for(",".join(request.headers.getlist("accept")))
            return Response(encode(registry), headers={"content-type": content_type})

        async def healthz(_request: Request) -> Response:
            return _verdict(healthy())

        async def readyz(_request: Request) -> Response:
            return _verdict(ready())

        guarded = {"/metrics": metrics, **(shown or {})}
        places = {path: self._guarded(answer) for path, answer in guarded.items()}
        places |= {"/healthz": healthz, "/readyz": readyz}
        routes = [Route(path, answer) for path, answer in places.items()]
        router = Router(routes, redirect_slashes=False, default=_not_here(list(places)))
        zipped = GZipMiddleware(router, compresslevel=_GZIP_LEVEL)
        self._connections = Connections(_Front(zipped), limits)

    async def start(self, address: TcpAddress, door: ScrapeDoor | None = None) -> TcpAddress:
        """Listen; returns the address with its real port. Raises StartError."""
        self._door = door
        try:
            sockets = await listeners(address)
        except OSError as error:
            raise not_bound(address, error) from error
        self._connections.start(sockets, None if door is None else door.context)
        return TcpAddress(address.host, sockets[0].getsockname()[1])

    def refusal(self, request: Request) -> Response | None:
        """What answers who may not see metrics; None for who may. Safe to ask again."""
        return None if self._door is None else self._door.refusal(request)

    def _guarded(self, answer: HttpAnswer) -> HttpAnswer:
        async def answered(request: Request) -> Response:
            return self.refusal(request) or await answer(request)

        return answered

    def close(self) -> None:
        """Listen no more. Safe where start() was never called or failed."""
        self._connections.close()


class _Front:
    """What holds for every request, whichever place it asks for."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def send_last(message: Message) -> None:
            nonlocal begun
            begun = True
            if message["type"] == "http.response.start":
                more = [(b"date", formatdate(usegmt=True).encode()), (b"connection", b"close")]
                message["headers"] = [*message["headers"], *more]
            await send(message)

        try:
            await self._app(_origin_form(scope), receive, send_last)
        except Exception as bug:
            _log.error("an HTTP request failed with %s", described(bug))
            if not begun:
                fault = PlainTextResponse("a fault of the daemon\n", 500)
                await fault(scope, receive, send_last)


def _origin_form(scope: Scope) -> Scope:
    """As if the target were a path: proxies' clients send the whole URL, which is as good."""
    path: str = scope["path"]
    if not path.lower().startswith(("http://", "https://")):
        return scope
    return {**scope, "path": "/" + path.split("://", 1)[1].partition("/")[2]}


def _not_here(places: Sequence[str]) -> ASGIApp:
    return PlainTextResponse(f"not here: {', '.join(places)}\n", HTTPStatus.NOT_FOUND)


def _verdict(good: bool) -> Response:
    if good:
        return PlainTextResponse("ok\n")
    return PlainTextResponse("not ok\n", HTTPStatus.SERVICE_UNAVAILABLE)

"""The small HTTP endpoint: /metrics, /healthz, /readyz.

- GET and HEAD only, one request per connection; head bytes, time and connections are bounded.
- It runs on the event loop on purpose: a loop that hangs must fail its health check.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from sapwood.daemon.settings.addresses import TcpAddress
from sapwood.daemon.settings.bind_errors import not_bound, require_bindable
from sapwood.scheduler.limits import Limits


@dataclass(frozen=True, slots=True)
class _Answer:
    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


class ScrapeEndpoint:
    """Serves the registry and two health checks over HTTP/1.1."""

    def __init__(
        self,
        registry: CollectorRegistry,
        healthy: Callable[[], bool],
        ready: Callable[[], bool],
        limits: Limits,
    ) -> None:
        self._registry = registry
        self._healthy = healthy
        self._ready = ready
        self._limits = limits
        self._connections = 0
        self._server: asyncio.Server | None = None

    async def start(self, address: TcpAddress) -> TcpAddress:
        """Listen; returns the address with its real port. Raises StartError."""
        require_bindable(address, address)
        try:
            self._server = await asyncio.start_server(
                self._serve, address.host, address.port, limit=self._limits.http_head_bytes_max
            )
        except OSError as error:
            raise not_bound(address, error) from error
        return TcpAddress(address.host, self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        """Listen no more. Safe where start() was never called or failed.

        Not wait_closed(): since Python 3.12 that waits for whoever is connected and says nothing.
        """
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections <= self._limits.http_connections_max:
                async with asyncio.timeout(self._limits.http_request_s_max):
                    await self._exchange(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the scraper's trouble, not ours
        finally:
            self._connections -= 1
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        request_line, *lines = head.split("\r\n")
        method, _, rest = request_line.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        fields = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        answer = self._answer(method, path, fields.get("accept", ""))
        writer.write(
            f"HTTP/1.1 {answer.status.value} {answer.status.phrase}\r\n"
            f"Content-Type: {answer.content_type}\r\n"
            f"Content-Length: {len(answer.body)}\r\n"
            "Connection: close\r\n\r\n".encode("latin-1")
        )
        if method != "HEAD":
            writer.write(answer.body)
        await writer.drain()

    def _answer(self, method: str, path: str, accept: str) -> _Answer:
        if method not in ("GET", "HEAD"):
            return _Answer(HTTPStatus.METHOD_NOT_ALLOWED, b"only GET\n")
        match path:
            case "/metrics":
                encode, content_type = choose_encoder(accept)
                return _Answer(HTTPStatus.OK, encode(self._registry), content_type)
            case "/healthz":
                return _verdict(self._healthy())
            case "/readyz":
                return _verdict(self._ready())
        return _Answer(HTTPStatus.NOT_FOUND, b"not here: /metrics, /healthz, /readyz\n")


def _verdict(good: bool) -> _Answer:
    if good:
        return _Answer(HTTPStatus.OK, b"ok\n")
    return _Answer(HTTPStatus.SERVICE_UNAVAILABLE, b"not ok\n")

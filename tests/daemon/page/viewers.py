"""Viewers of the live page, for its tests: they read a stream's events as a browser does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from sapwood.daemon.http.endpoint import ScrapeEndpoint
from sapwood.daemon.page.places import page_places
from sapwood.daemon.settings.addresses import TcpAddress
from sapwood.scheduler.limits import Limits
from tests.daemon.http.test_endpoint import asking, one_gauge, parted

QUICK = Limits(page_period_s=0.02, http_request_s_max=60.0)
PAGE = {"page": True}
EVENTS = asking("/page/events").replace(b"Host: x", b"Host: localhost")
Told = tuple[str, dict[str, Any]]


def own(target: str, *fields: str) -> bytes:
    return asking(target, "GET", *fields).replace(b"Host: x", b"Host: localhost:1")


class Viewer:
    """One that reads the stream of a page."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer
        self._buffer = b""
        self.over = False

    async def events(self) -> AsyncIterator[Told]:
        """Each as it comes; chunks of HTTP are taken apart."""
        while True:
            line = await self._reader.readline()
            self.over = line.strip() in (b"", b"0")
            if self.over:
                return
            self._buffer += await self._reader.readexactly(int(line, 16))
            await self._reader.readexactly(2)
            while b"\n\n" in self._buffer:
                text, _, self._buffer = self._buffer.partition(b"\n\n")
                fields = dict(each.split(": ", 1) for each in text.decode().split("\n"))
                yield fields["event"], json.loads(fields["data"])

    async def first(self, name: str, **holds: Any) -> dict[str, Any]:
        """The next event of this name that says all this."""
        async for event, told in self.events():
            if event == name and holds.items() <= told.items():
                return told
        raise AssertionError(f"the stream ended without {name} {holds}")


@asynccontextmanager
async def viewing(address: TcpAddress, request: bytes = EVENTS) -> AsyncIterator[Viewer]:
    reader, writer = await asyncio.open_connection(address.host, address.port, limit=1 << 22)
    try:
        writer.write(request)
        status, fields, _ = parted(await reader.readuntil(b"\r\n\r\n"))
        assert (status, fields["content-type"]) == (200, "text/event-stream; charset=utf-8")
        assert "content-encoding" not in fields, "what is packed comes late"
        yield Viewer(reader, writer)
    finally:
        writer.close()


class Flood:
    """A feed whose messages never end, of a megabyte each. gone: its viewer."""

    def __init__(self) -> None:
        self.viewers = 0
        self.gone = False

    @contextmanager
    def viewing(self) -> Iterator[bool]:
        self.viewers += 1
        try:
            yield True
        finally:
            self.viewers, self.gone = 0, True

    def greeting(self) -> bytes:
        return b"event: hello\ndata: {}\n\n"

    async def after(self, seen: int) -> tuple[int, list[bytes]]:
        await asyncio.sleep(0)
        return seen + 1, [b"event: now\ndata: [%s]\n\n" % (b" " * (1 << 20))]


@asynccontextmanager
async def shown(feed: Any, limits: Limits, refusal: Any = lambda _: None) -> AsyncIterator[Any]:
    answers = page_places(feed, refusal, loopback=True)
    endpoint = ScrapeEndpoint(one_gauge(), lambda: True, lambda: True, limits, answers)
    try:
        yield await endpoint.start(TcpAddress("127.0.0.1", 0))
    finally:
        endpoint.close()
        await asyncio.sleep(0)

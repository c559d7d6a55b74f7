"""Where the live page is served: its files, and the stream of what it shows.

- Read-only. The files are those of the package, read once; nothing is made of what a client sends.
- The stream ends for whoever may not see it any more, and for who takes nothing for as long as a
  request may take (daemon/http/connections.py).
- At loopback there is no token, so a web page of somebody else in a browser of this machine must
  not be let in: not under a name of its own that leads here (`Host`), and not across sites.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path

import anyio
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from sapwood.daemon.http.connections import RENEW
from sapwood.daemon.http.endpoint import HttpAnswer
from sapwood.daemon.page.feed import Feed, stream_event
from sapwood.daemon.settings.addresses import is_loopback

PAGE_PATH = "/page"
FULL_RETRY_MS = 10_000  # until whoever found the page full asks again
_FOLDER = Path(__file__).parent / "static"
_KINDS = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": _POLICY,
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
Refusal = Callable[[Request], Response | None]


def page_places(feed: Feed, refusal: Refusal, *, loopback: bool) -> Mapping[str, HttpAnswer]:
    """What answers by which path. refusal: of who may not see it, asked again for each message.

    loopback: it is served without TLS and without tokens.
    """

    async def events(request: Request) -> Response:
        if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return _refused("the page shows this, and no other site's")
        if request.method == "HEAD":
            return Response(headers=_HEADERS, media_type="text/event-stream")
        return _EventStream(feed, request, refusal)

    places: dict[str, HttpAnswer] = {f"{PAGE_PATH}/events": events}
    for file in sorted(_FOLDER.iterdir()):
        path = PAGE_PATH if file.name == "index.html" else f"{PAGE_PATH}/{file.name}"
        places[path] = _file(file.read_bytes(), _KINDS[file.suffix])
    if loopback:
        places = {path: _by_own_name(answer) for path, answer in places.items()}
    return places


def _file(content: bytes, kind: str) -> HttpAnswer:
    async def answer(_request: Request) -> Response:
        return Response(content, headers=_HEADERS, media_type=kind)

    return answer


def _by_own_name(answer: HttpAnswer) -> HttpAnswer:
    """For who asks by a name of loopback, which no other machine's can be."""

    async def answered(request: Request) -> Response:
        host = re.sub(r":\d*$", "", request.headers.get("host", "")).strip("[]").lower()
        if not is_loopback(host):
            return _refused("the page is for this machine: ask for it by localhost or 127.0.0.1")
        return await answer(request)

    return answered


def _refused(why: str) -> Response:
    return PlainTextResponse(f"{why}\n", HTTPStatus.FORBIDDEN)


class _EventStream(Response):
    """What the feed tells, for as long as somebody takes it."""

    def __init__(self, feed: Feed, request: Request, refusal: Refusal) -> None:
        super().__init__(headers=_HEADERS, media_type="text/event-stream")
        del self.headers["content-length"]
        self._feed, self._request, self._refusal = feed, request, refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = {"status": HTTPStatus.OK, "headers": self.raw_headers}
        await send({"type": "http.response.start", **head})
        async with anyio.create_task_group() as tasks:

            async def until_gone() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                tasks.cancel_scope.cancel()

            tasks.start_soon(until_gone)
            with self._feed.viewing() as there_is_room:
                if there_is_room:
                    await self._tell(send)
                else:
                    full = stream_event("full", {"viewers": self._feed.viewers})
                    await self._send(send, b"retry: %d\n" % FULL_RETRY_MS + full)
            tasks.cancel_scope.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _tell(self, send: Send) -> None:
        await self._send(send, b"retry: 1000\n" + self._feed.greeting())
        seen = 0
        while self._refusal(self._request) is None:
            seen, news = await self._feed.after(seen)
            await self._send(send, b"".join(news))

    async def _send(self, send: Send, text: bytes) -> None:
        """Waits for a viewer who takes nothing, whose time is not renewed then."""
        await send({"type": "http.response.body", "body": text, "more_body": True})
        self._request.scope["state"][RENEW]()

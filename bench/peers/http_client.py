"""Clients of a server with OpenAI's chat API, streaming.

- Python's own http.client, a thread for each: nothing to install, and no event loop of ours between
  the socket and the clock, which would take time from a server on the same machine.
- A client that is reset or turned away connects again until it is served, and says how often.
- Connected before the clock where the server lets a connection wait; a new one for every request
  else, as these servers speak HTTP/1.0 or close.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any

from anyio import CapacityLimiter, to_thread

from bench.measure import BenchError
from bench.peers.heard import ChatClient, Heard, PeerChat

REPLY_S_MAX = 900.0
_AGAIN_S = 0.05
_clock = time.perf_counter


class HttpClient:
    """model: the name that the server knows its model by."""

    def __init__(self, address: str, model: str, limiter: CapacityLimiter) -> None:
        self._address, self._model, self._limiter = address, model, limiter
        self._connection = self._new()

    async def connect(self) -> None:
        """A connection in advance; who is not let in now tries again when asking."""
        try:
            await to_thread.run_sync(self._connection.connect, limiter=self._limiter)
        except OSError:
            self._connection.close()

    async def ask(self, chat: PeerChat, tokens_max: int) -> Heard:
        """A greedy reply. Raises BenchError."""
        body = json.dumps(
            {
                "model": self._model,
                "messages": [{"role": m.role, "content": m.content} for m in chat],
                "temperature": 0.0,
                "max_tokens": tokens_max,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        ).encode()
        return await to_thread.run_sync(self._ask, body, limiter=self._limiter)

    def close(self) -> None:
        self._connection.close()

    def _ask(self, body: bytes) -> Heard:
        asked, resets = _clock(), 0
        while True:
            try:
                response = self._post(body)
                break
            except (OSError, HTTPException) as error:
                resets += 1
                if _clock() - asked > REPLY_S_MAX:
                    raise BenchError(f"{self._address}: never served: {error}") from error
                self._connection.close()
                self._connection = self._new()
                time.sleep(_AGAIN_S)
        try:
            return read_stream(response, asked, resets)
        except (OSError, HTTPException) as error:
            raise BenchError(f"{self._address}: broken in the middle of a reply") from error
        finally:
            response.close()
            self._connection.close()
            self._connection = self._new()

    def _post(self, body: bytes) -> HTTPResponse:
        headers = {"Content-Type": "application/json"}
        self._connection.request("POST", "/v1/chat/completions", body, headers)
        return self._connection.getresponse()

    def _new(self) -> HTTPConnection:
        return HTTPConnection(self._address, timeout=REPLY_S_MAX)


def read_stream(response: HTTPResponse, asked: float, resets: int = 0) -> Heard:
    """Server-sent events up to their end. Raises BenchError."""
    if response.status != 200:
        raise BenchError(f"status {response.status}: {response.read(500).decode(errors='replace')}")
    messages: list[float] = []
    texts: list[str] = []
    last: dict[str, Any] = {}
    while line := response.readline():
        now = _clock()
        if not line.startswith(b"data:") or line[5:].strip() == b"[DONE]":
            continue
        event = json.loads(line[5:])
        if "error" in event:
            raise BenchError(f"an error in the stream: {event['error']}")
        last |= {key: event[key] for key in ("usage", "timings") if event.get(key)}
        if text := _text(event):
            messages.append(now)
            texts.append(text)
    if not messages or "usage" not in last:
        raise BenchError("a reply without text or without an end")
    return _heard(asked, messages, "".join(texts), last, resets)


def _text(event: Mapping[str, Any]) -> str:
    choices = event.get("choices") or [{}]
    return (choices[0].get("delta") or {}).get("content") or ""


def _heard(
    asked: float, messages: list[float], text: str, last: Mapping[str, Any], resets: int
) -> Heard:
    usage, timings = last["usage"], last.get("timings", {})
    details = usage.get("prompt_tokens_details") or {}
    return Heard(
        asked,
        tuple(messages),
        _clock(),
        text,
        usage["prompt_tokens"],
        details.get("cached_tokens"),
        timings.get("draft_n"),
        timings.get("draft_n_accepted"),
        resets,
    )


@asynccontextmanager
async def http_clients(address: str, count: int, model: str) -> AsyncIterator[list[ChatClient]]:
    limiter = CapacityLimiter(count)
    clients = [HttpClient(address, model, limiter) for _ in range(count)]
    for client in clients:
        await client.connect()
    try:
        yield list(clients)
    finally:
        for client in clients:
            client.close()

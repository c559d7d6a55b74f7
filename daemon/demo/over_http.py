"""A client of the HTTP API, whose replies come as the events of our own client.

- Python's own http.client, in a thread for each reply, so that the demo needs nothing more.
- HTTP tells no ids. Tokens are counted by their log probabilities; the one that ends a reply comes
  with them or without, as it happens, and usage counts it.
- Rounds are not told, and what was cached only at the end.
"""

from __future__ import annotations

import json
import math
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any, Unpack

import anyio
from anyio import from_thread, to_thread

from sapwood import Delta, Event, Finish, FinishReason, GenerateOptions, Prefill, Prompt, Usage
from sapwood.daemon.demo.errors import DemoError

_REPLY_S_MAX = 100.0
_UNTOLD = (0,)  # the id of a token
_SENT = ("max_tokens", "temperature", "seed", "ignore_eos")
_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


class HttpChat:
    """Asks one model at one HOST:PORT."""

    def __init__(self, address: str, model: str) -> None:
        self._address, self._model = address, model

    @asynccontextmanager
    async def generate(
        self, prompt: Prompt, **options: Unpack[GenerateOptions]
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """As AsyncClient.generate: leaving the context hangs up. Raises DemoError."""
        connection, left = HTTPConnection(self._address, timeout=_REPLY_S_MAX), threading.Event()
        sockets: list[socket.socket] = []
        sent, received = anyio.create_memory_object_stream[Event](math.inf)

        def read() -> None:
            try:
                connection.connect()
                sockets.append(connection.sock)  # which a response may take over from it
                for event in self._events(connection, self._body(prompt, options)):
                    from_thread.run_sync(sent.send_nowait, event)
            except (OSError, HTTPException, ValueError) as error:
                if not left.is_set():  # else it ends as it was asked to
                    raise DemoError(f"HTTP: {type(error).__name__}") from error
            finally:
                connection.close()
                from_thread.run_sync(sent.close)

        async with received, anyio.create_task_group() as tasks:
            tasks.start_soon(to_thread.run_sync, read)
            try:
                yield received
            finally:
                left.set()
                _hang_up(sockets)

    def _body(self, prompt: Prompt, options: GenerateOptions) -> bytes:
        given: Mapping[str, Any] = dict(options)
        body = {name: given[name] for name in _SENT if name in given}
        assert isinstance(prompt, list), "messages, as the script has them"
        said = [{"role": one.role, "content": one.content} for one in prompt]
        streamed = {"stream": True, "stream_options": {"include_usage": True}, "logprobs": True}
        return json.dumps({"model": self._model, "messages": said, **body, **streamed}).encode()

    def _events(self, connection: HTTPConnection, body: bytes) -> Iterator[Event]:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", body, headers)
        with connection.getresponse() as response:
            if response.status != 200:
                raise DemoError(f"HTTP {response.status}: {response.read(300).decode()}")
            yield from read_events(response)


def read_events(response: HTTPResponse) -> Iterator[Event]:
    """Server-sent events up to their end. Raises DemoError."""
    tokens, reason = 0, FinishReason.STOP
    while line := response.readline():
        if not line.startswith(b"data:") or line[5:].strip() == b"[DONE]":
            continue
        said = json.loads(line[5:])
        if "error" in said:
            raise DemoError(f"HTTP: {said['error'].get('message', 'an error in the stream')}")
        for choice in said.get("choices", ()):
            reason = _REASONS.get(choice.get("finish_reason") or "", reason)
            delta = _delta(choice)
            tokens += len(delta.token_ids)
            if delta.token_ids:
                yield delta
        if usage := said.get("usage"):
            yield from _ending(usage, tokens, reason)


def _delta(choice: Mapping[str, Any]) -> Delta:
    told = (choice.get("logprobs") or {}).get("content") or ()
    return Delta((choice.get("delta") or {}).get("content") or "", _UNTOLD * len(told))


def _ending(usage: Mapping[str, Any], tokens: int, reason: FinishReason) -> Iterator[Event]:
    """What only the end tells: what was cached, the token without text, and the counts."""
    prompt, completion = usage["prompt_tokens"], usage["completion_tokens"]
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    details = usage.get("completion_tokens_details") or {}
    accepted = details.get("accepted_prediction_tokens") or 0
    drafts = accepted + (details.get("rejected_prediction_tokens") or 0)
    yield Prefill(cached, prompt, prompt)
    if completion == tokens + 1:
        yield Delta("", _UNTOLD)
    counts = Usage(prompt, cached, completion, 0, 0, drafts, accepted, 0.0, 0.0, 0.0)
    yield Finish(reason, "", counts)


def _hang_up(sockets: list[socket.socket]) -> None:
    """Wakes the thread that reads."""
    for each in sockets:
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)

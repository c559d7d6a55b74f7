"""Joins the events of one stream into the whole reply.

- Events are added in the order in which they came, each once.
- Only a stream that ended with a Finish is a reply; anything else is the daemon's fault.
"""

from __future__ import annotations

import grpc

from sapwood.client.errors import SapwoodError
from sapwood.client.values import Delta, Event, Finish, Prefill, Reply, TokenLogprobs, ToolCall


class ReplyBuilder:
    """What has come so far of one reply."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._thinking: list[str] = []
        self._tool_calls: list[ToolCall] = []
        self._logprobs: list[TokenLogprobs] = []
        self._prompt_logprobs: list[TokenLogprobs] = []
        self._prefill: Prefill | None = None
        self._finish: Finish | None = None

    def add(self, event: Event) -> None:
        """The next event of the stream, each once."""
        match event:
            case Prefill():
                self._prefill = event
                self._prompt_logprobs.extend(event.logprobs)
            case Delta():
                self._texts.append(event.text)
                self._token_ids.extend(event.token_ids)
                self._thinking.append(event.thinking)
                self._tool_calls.extend(event.tool_calls)
                self._logprobs.extend(event.logprobs)
            case Finish():
                self._finish = event

    def reply(self) -> Reply:
        """The whole reply. Raises SapwoodError where the stream ended before its Finish."""
        if self._prefill is None or self._finish is None:
            raise SapwoodError(grpc.StatusCode.INTERNAL, "the stream ended before the reply did")
        return Reply(
            "".join(self._texts),
            tuple(self._token_ids),
            self._prefill,
            self._finish,
            "".join(self._thinking),
            tuple(self._tool_calls),
            tuple(self._logprobs),
            tuple(self._prompt_logprobs),
        )

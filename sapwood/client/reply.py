"""Joins the events of one stream into the whole reply.

- Events are added in the order in which they came, each once.
- Only a stream that ended with a Finish is a reply; anything else is the daemon's fault.
"""

from __future__ import annotations

import grpc

from sapwood.client.errors import SapwoodError
from sapwood.client.values import Delta, Event, Finish, Prefill, Reply, TokenLogprobs, ToolCall


class ReplyBuilder:
    """What has come so far of a stream: one reply, or as many as were asked for.

    What is resumed is one.
    """

    def __init__(self) -> None:
        self._parts: dict[int, _Parts] = {0: _Parts()}
        self._prompt_logprobs: list[TokenLogprobs] = []
        self._prefill: Prefill | None = None

    @property
    def begun(self) -> bool:
        """Whether anything came."""
        return self._prefill is not None

    @property
    def tokens(self) -> int:
        """How many there are, of the prompt and what came of the reply; 0 where nothing came."""
        prompt_tokens = 0 if self._prefill is None else self._prefill.prompt_tokens
        return prompt_tokens + self._parts[0].tokens

    @property
    def whole(self) -> bool:
        """Whether nothing is to come, where one reply was asked for."""
        return self._parts[0].finish is not None

    def takes(self, event: Event) -> bool:
        """Whether it is news: how far the prompt is, is told again of a reply that is resumed."""
        return not (isinstance(event, Prefill) and self._parts[0].tokens)

    def add(self, event: Event) -> None:
        """The next event of the stream, each once."""
        match event:
            case Prefill():
                self._prefill = event
                self._prompt_logprobs.extend(event.logprobs)
            case Delta() | Finish():
                self._parts.setdefault(event.candidate, _Parts()).add(event)

    def replies(self) -> tuple[Reply, ...]:
        """All of them. Raises SapwoodError where the stream ended before the last Finish."""
        parts = [self._parts[candidate] for candidate in sorted(self._parts)]
        if self._prefill is None or any(part.finish is None for part in parts):
            raise SapwoodError(grpc.StatusCode.INTERNAL, "the stream ended before the reply did")
        return tuple(part.reply(self._prefill, tuple(self._prompt_logprobs)) for part in parts)


class _Parts:
    """What has come so far of one reply, but for its prompt."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._thinking: list[str] = []
        self._tool_calls: list[ToolCall] = []
        self._logprobs: list[TokenLogprobs] = []
        self.finish: Finish | None = None

    @property
    def tokens(self) -> int:
        return len(self._token_ids)

    def add(self, event: Delta | Finish) -> None:
        if isinstance(event, Finish):
            self.finish = event
            return
        self._texts.append(event.text)
        self._token_ids.extend(event.token_ids)
        self._thinking.append(event.thinking)
        self._tool_calls.extend(event.tool_calls)
        self._logprobs.extend(event.logprobs)

    def reply(self, prefill: Prefill, prompt_logprobs: tuple[TokenLogprobs, ...]) -> Reply:
        assert self.finish is not None, "before its end"
        return Reply(
            "".join(self._texts),
            tuple(self._token_ids),
            prefill,
            self.finish,
            "".join(self._thinking),
            tuple(self._tool_calls),
            tuple(self._logprobs),
            prompt_logprobs,
        )

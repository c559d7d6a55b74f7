"""A reply divided into what the model says, what it thinks, and what it calls.

- Only control tokens divide it, never text that looks like one. A model without them has only text.
- A channel is thinking, without its name. The prompt may have opened one. Only its own end ends it:
  a call inside a thought is a call, and what follows is thought again.
- Calls leave when their block is complete. A block that is not calls all through, or was cut off,
  leaves whole, its quotes spelled, as text or as the thought that it stands in: nothing is lost,
  nobody is handed half a call, and no thought is shown as an answer.
- Stop strings are looked for in the text alone.
- Every byte of a call is copied once while it comes: linear in the reply.
"""

from __future__ import annotations

from collections.abc import Sequence

from sapwood.scheduler.control_tokens import SPELLED_QUOTE, ControlTokens
from sapwood.scheduler.events import ToolCall
from sapwood.scheduler.reply.channel_name import ChannelName
from sapwood.scheduler.reply.text import ReplyText
from sapwood.scheduler.reply.tool_calls import read_calls
from sapwood.scheduler.thinking import Thinking, opened_channel


class ReplyParts:
    """push() each token, take what may leave, finish() when the reply ends."""

    __slots__ = (
        "_call",
        "_calls",
        "_control_tokens",
        "_name",
        "_text",
        "_thinking",
        "_thought",
        "_token_bytes",
    )

    def __init__(
        self,
        token_bytes: Sequence[bytes],
        stops: Sequence[str] = (),
        control_tokens: ControlTokens = ControlTokens(),  # noqa: B008 (frozen)
        prompt: Sequence[int] = (),
    ) -> None:
        """`token_bytes[id]` are the bytes of a token, b"" for specials; shared, never changed."""
        self._token_bytes = token_bytes
        self._control_tokens = control_tokens
        self._text = ReplyText(token_bytes, stops)
        self._thinking = ReplyText(token_bytes)
        self._call: list[bytearray] | None = None
        self._calls: list[ToolCall] = []
        self._thought = Thinking(control_tokens, prompt)
        opened = opened_channel(prompt, control_tokens)
        self._name = ChannelName(b"".join(token_bytes[token] for token in opened))

    @property
    def stopped_by(self) -> str:
        """The stop string that was found in the text, "" where none was."""
        return self._text.stopped_by

    @property
    def thinking_tokens(self) -> int:
        """How many of the tokens are thought."""
        return self._thought.tokens

    def look_for(self, stops: Sequence[str]) -> None:
        """The reply ends with one of these, if it begins in what comes from now on."""
        self._text.look_for(stops)

    def push(self, token: int) -> bool:
        """Append a token. True when it completed a stop string: the reply ends with this token."""
        self._thought.push(token)
        if self._call is not None:
            return self._push_call(token, self._call)
        if self._divides(token):
            return False
        if self._thought.thinks:
            return self._thinking.push_bytes(self._name.push(self._token_bytes[token]))
        return self._text.push(token)

    def finish(self) -> None:
        """Let go of everything held back: the reply ended otherwise than by a stop string.

        A call that was cut is text from now on, so a stop string may be found in it.
        """
        if self._call is not None and not self.stopped_by:
            self._spell(self._call)
        self._end_name()
        self._text.finish()
        self._thinking.finish()

    def take_text(self) -> str:
        """Text that may leave and has not been taken yet."""
        return self._text.take()

    def take_thinking(self) -> str:
        """Thinking that may leave and has not been taken yet."""
        return self._thinking.take()

    def take_calls(self) -> tuple[ToolCall, ...]:
        """Calls that became complete and have not been taken yet."""
        calls = tuple(self._calls)
        self._calls.clear()
        return calls

    def _divides(self, token: int) -> bool:
        """Whether the token divides the reply, which it then does."""
        control_tokens = self._control_tokens
        if token == control_tokens.channel_start:
            self._end_name()
            self._name = ChannelName()
        elif token == control_tokens.channel_end:
            self._end_name()
        elif token == control_tokens.call_start:
            self._end_name()
            self._call = [bytearray()]
        else:
            return False
        return True

    def _end_name(self) -> None:
        self._thinking.push_bytes(self._name.end())

    def _push_call(self, token: int, call: list[bytearray]) -> bool:
        if token == self._control_tokens.quote:
            call.append(bytearray())
        elif token != self._control_tokens.call_end:
            call[-1] += self._token_bytes[token]
        else:
            self._call = None
            calls = read_calls([piece.decode("utf-8", "replace") for piece in call])
            if not calls:
                return self._spell(call)
            self._calls += calls
        return False

    def _spell(self, call: list[bytearray]) -> bool:
        """Say what is no call, where it stands. True when it completed a stop string."""
        where = self._thinking if self._thought.channel_open else self._text
        return where.push_bytes(SPELLED_QUOTE.encode().join(call))

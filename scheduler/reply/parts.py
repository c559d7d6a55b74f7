"""A reply divided into what the model says, what it thinks, and what it calls.

- Only control tokens divide it, never text that looks like one. A model without them has only text.
- A channel is thinking, without its first line, which names it. The prompt may have opened one.
- A call leaves when it is complete. One that is no call, or was cut off, leaves as text: nothing
  is lost, and nobody is handed half a call.
- Stop strings are looked for in the text alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from sapwood.scheduler.control_tokens import ControlTokens
from sapwood.scheduler.events import ToolCall
from sapwood.scheduler.reply.text import ReplyText
from sapwood.scheduler.reply.tool_calls import read_call


class ReplyParts:
    """push() each token, take what may leave, finish() when the reply ends."""

    __slots__ = (
        "_call",
        "_calls",
        "_control_tokens",
        "_names_channel",
        "_text",
        "_thinking",
        "_thinks",
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
        self._call: list[bytes] | None = None
        self._calls: list[ToolCall] = []
        self._thinks = self._names_channel = False
        for token in _since_last(prompt, control_tokens):
            self._divides(token)
            self._without_name(token)

    @property
    def stopped_by(self) -> str:
        """The stop string that was found in the text, "" where none was."""
        return self._text.stopped_by

    def push(self, token: int) -> bool:
        """Append a token. True when it completed a stop string: the reply ends with this token."""
        if self._call is not None:
            return self._push_call(token, self._call)
        if self._divides(token):
            return False
        if self._thinks:
            self._thinking.push_bytes(self._without_name(token))
            return False
        return self._text.push(token)

    def finish(self) -> None:
        """Let go of everything held back: the reply ended otherwise than by a stop string."""
        if self._call is not None and not self.stopped_by:
            self._text.push_bytes(b"".join(self._call))
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

    def _without_name(self, token: int) -> bytes:
        """A token's bytes, less what still belongs to the line that names the channel."""
        data = self._token_bytes[token]
        if self._names_channel:
            _, newline, data = data.partition(b"\n")
            self._names_channel = not newline
        return data

    def _divides(self, token: int) -> bool:
        """Whether the token divides the reply, which it then does."""
        control_tokens = self._control_tokens
        if token == control_tokens.channel_start:
            self._thinks = self._names_channel = True
        elif token == control_tokens.channel_end:
            self._thinks = False
        elif token == control_tokens.call_start:
            self._call = [b""]
        else:
            return False
        return True

    def _push_call(self, token: int, call: list[bytes]) -> bool:
        if token == self._control_tokens.quote:
            call.append(b"")
        elif token != self._control_tokens.call_end:
            call[-1] += self._token_bytes[token]
        else:
            self._call = None
            self._thinks = False
            read = read_call([piece.decode("utf-8", "replace") for piece in call])
            if read is None:
                return self._text.push_bytes(b"".join(call))
            self._calls.append(read)
        return False


def _since_last(prompt: Sequence[int], control_tokens: ControlTokens) -> Sequence[int]:
    """The prompt from where it last opened a channel that it did not close, else nothing."""
    if control_tokens.channel_start is None:
        return ()
    ends = (control_tokens.channel_end, control_tokens.turn_start)
    for index in range(len(prompt) - 1, -1, -1):
        if prompt[index] in ends:
            return ()
        if prompt[index] == control_tokens.channel_start:
            return prompt[index:]
    return ()

"""How many tokens of a reply are thought: those in a channel, not those that open and close it.

- Only control tokens open and close, never text that looks like one. The prompt may have opened a
  channel. Only its own end ends it: a call inside of a thought is a call, and what follows is
  thought again. The tokens of a call are no thought.
- One rule for whoever divides a reply, counts its thoughts and bounds them.
"""

from __future__ import annotations

from collections.abc import Sequence

from sapwood.scheduler.control_tokens import ControlTokens


class Thinking:
    """Where a reply stands. push() each of its tokens in order."""

    __slots__ = ("_calls", "_channel_open", "_control_tokens", "tokens")

    def __init__(self, control_tokens: ControlTokens, prompt: Sequence[int] = ()) -> None:
        self._control_tokens = control_tokens
        self._channel_open = bool(opened_channel(prompt, control_tokens))
        self._calls = False
        self.tokens = 0  # thought so far

    @property
    def thinks(self) -> bool:
        """Whether the next token is a thought, unless it opens, closes or begins a call."""
        return self._channel_open and not self._calls

    @property
    def channel_open(self) -> bool:
        """Whether a channel is open: in a call it stays as it was."""
        return self._channel_open

    def copy(self) -> Thinking:
        """Another that stands where this one does."""
        other = Thinking(self._control_tokens)
        other._channel_open, other._calls = self._channel_open, self._calls
        other.tokens = self.tokens
        return other

    def push(self, token: int) -> None:
        """The reply's next token."""
        control_tokens = self._control_tokens
        if self._calls:
            self._calls = token != control_tokens.call_end
        elif token == control_tokens.channel_start:
            self._channel_open = True
        elif token == control_tokens.channel_end:
            self._channel_open = False
        elif token == control_tokens.call_start:
            self._calls = True
        elif self._channel_open:
            self.tokens += 1


def opened_channel(prompt: Sequence[int], control_tokens: ControlTokens) -> Sequence[int]:
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

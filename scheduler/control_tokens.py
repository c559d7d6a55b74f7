"""Which token ids divide a reply into text, thinking and calls."""

from __future__ import annotations

from dataclasses import dataclass

SPELLED_QUOTE = '<|"|>'  # what the quote token is called, where a text has to show it


@dataclass(frozen=True, slots=True)
class ControlTokens:
    """The control tokens by which a model divides its replies; None where it has no such token."""

    turn_start: int | None = None
    channel_start: int | None = None  # what it thinks
    channel_end: int | None = None
    call_start: int | None = None  # of a function
    call_end: int | None = None
    quote: int | None = None  # before and after a string in a call

    @property
    def thinks(self) -> bool:
        """Whether the model has channels to think in, and a token that closes them."""
        return self.channel_start is not None and self.channel_end is not None

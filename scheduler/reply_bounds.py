"""How long a reply is at least, and how long it may think: what masks keep it to."""

from __future__ import annotations

from dataclasses import dataclass

from sapwood.scheduler.control_tokens import ControlTokens


@dataclass(frozen=True, slots=True)
class ReplyBounds:
    """min_tokens: the first of its tokens, none of which is one of ending_ids.

    thinking_tokens_max: of all its thoughts together; None: as the model likes. Where they are
    used up an open channel is closed by the model's own token, and none is opened again.
    """

    ending_ids: frozenset[int]
    min_tokens: int = 0
    thinking_tokens_max: int | None = None
    control_tokens: ControlTokens = ControlTokens()  # noqa: RUF009 (frozen)

    @property
    def binds(self) -> bool:
        """Whether anything is ever masked for it."""
        return self.min_tokens > 0 or self.thinking_tokens_max is not None

    def may_end(self, index: int) -> bool:
        """Whether the reply's token `index`, from 0, may be one that ends it."""
        return index >= self.min_tokens

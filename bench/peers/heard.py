"""What a client of any contestant saw of one reply, and what it is asked through.

- Times are of one clock, in seconds, taken when the message was in the client's hands.
- Tokens are counted from the text by one tokenizer after the clock has stopped; what a server says
  of its own work (cached tokens, drafts) is kept beside it, None where it does not say.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from sapwood import Message

PeerChat = Sequence[Message]


@dataclass(frozen=True, slots=True)
class Heard:
    """One reply. messages: when each one with text or tokens came; resets: how often the client had
    to connect again before it was served.
    """

    asked: float
    messages: tuple[float, ...]
    ended: float
    text: str
    prompt_tokens: int
    cached_tokens: int | None = None
    drafts: int | None = None
    accepted: int | None = None
    resets: int = 0

    @property
    def first_text_s(self) -> float:
        return self.messages[0] - self.asked

    @property
    def message_gaps_s(self) -> list[float]:
        """Between one message and the next of this reply."""
        return [later - earlier for earlier, later in pairwise(self.messages)]


def computed_tokens(heard: Sequence[Heard]) -> int | None:
    """Of all their prompts, what was not found; None where a server does not tell."""
    found = [reply.cached_tokens for reply in heard if reply.cached_tokens is not None]
    if len(found) < len(heard):
        return None
    return sum(reply.prompt_tokens for reply in heard) - sum(found)


class ChatClient(Protocol):
    """One client of one contestant; it asks for one greedy reply at a time."""

    async def ask(self, chat: PeerChat, tokens_max: int) -> Heard:
        """Raises BenchError for a reply without text or end, or a refusal."""


class ChatClients(Protocol):
    """Makes clients, each with a connection of its own."""

    def __call__(self, address: str, count: int) -> AbstractAsyncContextManager[list[ChatClient]]:
        """Connected before the clock starts."""

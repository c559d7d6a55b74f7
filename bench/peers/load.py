"""Clients together: how many tokens they got in which time, and whether all heard the same.

- A span runs from the first request to the last end, as the clients see it.
- Greedy text is compared with the first contestant's of the same turn: peers compute in their own
  order, so it may part within rounding. Told, not judged.
"""

from __future__ import annotations

from collections.abc import Sequence

import anyio

from bench.peers.contestants import Running
from bench.peers.heard import ChatClient, Heard, PeerChat
from bench.peers.prompts import text_tokens


async def all_ask(
    running: Running, chats: Sequence[Sequence[PeerChat]], tokens_max: int
) -> list[list[Heard]]:
    """Each client asks its chats one after another, all clients at once."""
    heard: list[list[Heard]] = [[] for _ in chats]

    async def one(client: ChatClient, number: int) -> None:
        for chat in chats[number]:
            heard[number].append(await client.ask(chat, tokens_max))

    async with (
        running.clients(running.address, len(chats)) as clients,
        anyio.create_task_group() as tasks,
    ):
        for number, client in enumerate(clients):
            tasks.start_soon(one, client, number)
    return heard


def load_measures(heard: Sequence[Heard]) -> dict[str, float]:
    """Of one burst: rate, waits, and what the server says of its work where it does."""
    span_s = max(h.ended for h in heard) - min(h.asked for h in heard)
    tokens = sum(text_tokens(h.text) for h in heard)
    found = {
        "tokens_per_s": tokens / span_s,
        "first_text_s": sum(h.first_text_s for h in heard) / len(heard),
        "tokens": float(tokens),
        "replies": float(len(heard)),
        "resets": float(sum(h.resets for h in heard)),
    }
    counts = {
        "cached_tokens": [h.cached_tokens for h in heard],
        "drafts": [h.drafts for h in heard],
        "accepted": [h.accepted for h in heard],
    }
    return found | {
        name: float(sum(n for n in numbers if n is not None))
        for name, numbers in counts.items()
        if None not in numbers
    }


class SameText:
    """How many replies of a turn are those that the first one to take it got."""

    def __init__(self) -> None:
        self._first: dict[tuple[int, ...], list[str]] = {}

    def equal(self, turn: tuple[int, ...], texts: Sequence[str]) -> float:
        known = self._first.setdefault(turn, list(texts))
        return float(sum(a == b for a, b in zip(known, texts, strict=True)))

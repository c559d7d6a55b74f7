"""What was emitted of a reply, once more: the same texts, thoughts and calls at the same tokens.

- A text that was held back behind a token is held back behind it again. So who has the deltas up to
  some token, and reads on from there, has each character once.
- A call has the id that it had: it is made of where it stands in its session.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from sapwood.scheduler.events import Delta, ToolCall
from sapwood.scheduler.reply.reply import GeneratedReply

PIECE_TOKENS = 256


def identified(calls: Iterable[ToolCall], prompt_tokens: int, first: int) -> tuple[ToolCall, ...]:
    """Calls with the ids that they have in their session; `first` came before them in the reply."""
    return tuple(
        replace(call, id=f"call_{prompt_tokens}_{index}") for index, call in enumerate(calls, first)
    )


def retell(
    reply: GeneratedReply, prompt_tokens: int, tokens: Sequence[int], start: int, id: int
) -> Iterator[Delta | None]:
    """Deltas of tokens[start:], under `id`, made as they are asked for; None: go on asking.

    reply: one that has no token yet. Each item costs a bounded time.
    """
    parts, end, called = reply.parts, len(tokens), 0
    while (first := len(reply.tokens)) < end:
        stop = min(first + PIECE_TOKENS, end if first >= start else start)
        reply.push_again(tokens[first:stop])
        text, thinking = parts.take_text(), parts.take_thinking()
        calls = identified(parts.take_calls(), prompt_tokens, called)
        called += len(calls)
        told = Delta(id, text, tuple(tokens[first:stop]), thinking, calls)
        yield told if first >= start else None

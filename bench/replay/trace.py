"""What a trace is, what stored K/V weighs, and the share of prompt tokens that is computed again.

- A trace is a list of requests, served one after another: each ends before the next begins.
- A request leaves K/V of its prompt and of its reply but for the last token, never evaluated.
- A hit at t needs the full K/V of [0, t) and the sliding K/V of the last `window` tokens before t.
- One token of a prompt at least is computed: it makes the row that the reply begins with.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from bench.families import FAMILIES, FULL_HEAD_SIZE, HEAD_SIZE, KV_ITEM_BYTES, Family


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """Token ids. system_tokens: of the prompt's first message; from_user: who wrote the last."""

    prompt: array[int]
    reply: array[int]
    system_tokens: int = 0
    from_user: bool = True

    @property
    def stored(self) -> array[int]:
        """The tokens that there is K/V of once it is served."""
        return self.prompt + self.reply[:-1]


@dataclass(frozen=True, slots=True)
class KVShape:
    """Bytes of stored K/V per token, by kind of layer, and what a restore needs of sliding ones."""

    full_bytes: int
    sliding_bytes: int
    window: int

    @classmethod
    def of(cls, family: Family) -> KVShape:
        full = sum(own and kind for own, kind in zip(family.own, family.kinds, strict=True))
        sliding = sum(family.own) - full
        return cls(
            full * 2 * family.full_kv_heads * FULL_HEAD_SIZE * KV_ITEM_BYTES,
            sliding * 2 * family.kv_heads * HEAD_SIZE * KV_ITEM_BYTES,
            family.window,
        )


# 20,480 bytes a token in full layers and 204,800 in sliding ones, of which 1,024 tokens count.
TRACE_SHAPE = KVShape.of(FAMILIES["26B-A4B"])
TRACE_BUDGET_BYTES = 4 << 30


class CachePolicy(Protocol):
    """Keeps stored K/V; what it holds when a request has been served is within its budget."""

    @property
    def held_bytes(self) -> int:
        """Of all that it keeps."""

    def serve(self, request: TraceRequest) -> int:
        """How many of the prompt's tokens are found; then the request's own K/V is stored."""


def replay(policy: CachePolicy, trace: Sequence[TraceRequest]) -> float:
    """The share of all prompt tokens that has to be computed."""
    computed = total = 0
    for request in trace:
        found = policy.serve(request)
        assert 0 <= found < len(request.prompt), f"{found} of {len(request.prompt)} tokens"
        computed += len(request.prompt) - found
        total += len(request.prompt)
    return computed / total

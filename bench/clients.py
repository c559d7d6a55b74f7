"""Clients over real gRPC, together or one after another, and what they saw.

- Each client has a connection of its own, made before the clock starts.
- Tokens are counted as they arrive; rounds and drafts come from the daemon's usage.
- A span runs from the first request to the last end, as the clients see it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import anyio

from bench.measure import BenchError, Side
from sapwood import AsyncClient, Delta, Finish, Prefill, Prompt
from sapwood.client.values import GenerateOptions, Usage

_clock = time.perf_counter


@dataclass(frozen=True, slots=True)
class TimedReply:
    """One request. Times in seconds of one clock."""

    asked: float
    first_token: float
    ended: float
    tokens: int
    usage: Usage

    @property
    def first_token_s(self) -> float:
        return self.first_token - self.asked


@dataclass(frozen=True, slots=True)
class Served:
    """What a group of clients got."""

    replies: tuple[TimedReply, ...]

    @property
    def span_s(self) -> float:
        return max(r.ended for r in self.replies) - min(r.asked for r in self.replies)

    @property
    def tokens(self) -> int:
        return sum(r.tokens for r in self.replies)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.span_s

    def total(self, count: str) -> int:
        """Sum of one of Usage's counts."""
        return sum(int(getattr(r.usage, count)) for r in self.replies)


async def ask(client: AsyncClient, prompt: Prompt, options: GenerateOptions) -> TimedReply:
    """Raises BenchError for a reply without a token or an end, SapwoodError for a refusal."""
    asked, first_token, tokens = _clock(), 0.0, 0
    usage: Usage | None = None
    async with client.generate(prompt, **options) as stream:
        async for event in stream:
            match event:
                case Delta():
                    first_token = first_token or _clock()
                    tokens += len(event.token_ids)
                case Finish():
                    usage = event.usage
                case Prefill():
                    pass
    if usage is None or not tokens:
        raise BenchError("a reply without a token or without an end")
    return TimedReply(asked, first_token, _clock(), tokens, usage)


async def together(
    clients: Sequence[AsyncClient], prompts: Sequence[Prompt], options: GenerateOptions
) -> Served:
    replies: list[TimedReply] = []

    async def one(client: AsyncClient, prompt: Prompt) -> None:
        replies.append(await ask(client, prompt, options))

    async with anyio.create_task_group() as tasks:
        for client, prompt in zip(clients, prompts, strict=True):
            tasks.start_soon(one, client, prompt)
    return Served(tuple(replies))


async def one_by_one(
    clients: Sequence[AsyncClient], prompts: Sequence[Prompt], options: GenerateOptions
) -> Served:
    pairs = zip(clients, prompts, strict=True)
    return Served(tuple([await ask(client, prompt, options) for client, prompt in pairs]))


@dataclass(slots=True)
class Group:
    """One side of a comparison of throughputs. draft_tokens None: the daemon decides."""

    name: str
    together: bool
    draft_tokens: int | None
    served: list[Served] = field(default_factory=list)

    async def serve(
        self, clients: Sequence[AsyncClient], prompts: Sequence[Prompt], options: GenerateOptions
    ) -> Served:
        """Greedy replies. The caller adds what counts to `served`."""
        options = GenerateOptions(**options, temperature=0.0, draft_tokens=self.draft_tokens)
        return await (together if self.together else one_by_one)(clients, prompts, options)

    @property
    def side(self) -> Side:
        return Side(self.name, "tokens/s", tuple(s.tokens_per_s for s in self.served))

    def total(self, count: str) -> int:
        """Sum of one of Usage's counts over all runs."""
        return sum(served.total(count) for served in self.served)

    def acceptance(self) -> dict[str, float]:
        """What became of the drafts; a round is a forward that verified some."""
        accepted, drafts = self.total("accepted_tokens"), self.total("draft_tokens")
        rounds, steps = self.total("rounds"), self.total("decode_steps")
        return {
            "accepted_per_round": accepted / rounds if rounds else 0.0,
            "accepted_share_of_drafts": accepted / drafts if drafts else 0.0,
            "rounds_share_of_decode_steps": rounds / steps if steps else 0.0,
            "tokens_per_decode_step": 1 + accepted / steps if steps else 0.0,
        }


@asynccontextmanager
async def connected(address: str, count: int) -> AsyncIterator[list[AsyncClient]]:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(AsyncClient(address)) for _ in range(count)]
        for client in clients:
            await client.is_serving()
        yield clients

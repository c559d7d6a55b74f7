"""Time to first text: of a cold prompt, and of one whose first 2,000 tokens were asked before.

- A system prompt of 2,000 tokens and a short question; the second asks another behind the same one.
  Another system prompt in every turn, which begins unlike, so that nothing else is in a cache.
- What the server says it found is told beside it: a peer may find nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack

from bench.measure import Figure
from bench.peers.contestants import Running, naming
from bench.peers.heard import Heard
from bench.peers.prompts import sharing_chats
from bench.peers.question import Answer, Measures, Question, rows_of
from bench.peers.rows import PairRows, most, ratio

SHARED_TOKENS, QUICK_SHARED_TOKENS = 2000, 400
HIT_OVER_MLX_LM, HIT_OVER_COLD = 1.3, 0.04
FIRST_UNITS = {"hit_s": "s", "cold_s": "s", "hit_found_tokens": "tokens"}


async def ask_first_text(question: Question) -> Answer:
    """Raises BenchError."""
    async with AsyncExitStack() as stack:
        running = await question.start_all(stack)
        shared = QUICK_SHARED_TOKENS if question.quick else SHARED_TOKENS

        async def turn(side: str, number: int) -> Measures:
            return await cold_and_hit(running[side], shared, number)

        for side in running:
            with naming(side):
                await turn(side, -1)
        found = await question.alternations(list(running), turn, "first text")
    rows = rows_of(found, FIRST_UNITS, 1)
    plan = question.pair.plan
    return Answer(tuple(rows), tuple(first_text_figures(plan.name, plan.title, PairRows(rows))))


async def cold_and_hit(running: Running, shared: int, seed: int) -> Measures:
    """The cold one has to come first: it is what the hit finds."""
    heard: list[Heard] = []
    async with running.clients(running.address, 2) as clients:
        chats = sharing_chats(shared, seed)
        for client, chat in zip(clients, chats, strict=True):
            heard.append(await client.ask(chat, 1))
    cold, hit = heard
    found = {} if hit.cached_tokens is None else {"hit_found_tokens": float(hit.cached_tokens)}
    return {"hit_s": hit.first_text_s, "cold_s": cold.first_text_s} | found


def first_text_figures(pair: str, title: str, rows: PairRows) -> Iterator[Figure]:
    """The hit against mlx_lm.server's on the bundled pair, against cold on the others."""
    hit, cold, lm = (
        rows.find("ours", "hit_s", 1),
        rows.find("ours", "cold_s", 1),
        rows.find("mlx_lm", "hit_s", 1),
    )
    bundled = pair == "bundled"
    yield from ratio(
        f"first/{pair}/hit",
        f"{title}: time to first text on a hit, ours ÷ mlx_lm.server",
        hit,
        lm,
        most(HIT_OVER_MLX_LM if bundled else None),
    )
    yield from ratio(
        f"first/{pair}/cold",
        f"{title}: time to first text, ours, hit ÷ cold",
        hit,
        cold,
        most(None if bundled else HIT_OVER_COLD),
    )

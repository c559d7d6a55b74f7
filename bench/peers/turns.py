"""Eight conversations of six turns, all at once: how long they take, and what is computed again.

- One shared system prompt; each turn's prompt is the whole conversation so far with a new question,
  and the reply that was given before, whatever it was.
- Computed again: tokens of prompts that the server did not find, first turns' included, where it
  tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack

import anyio

from bench.measure import Figure
from bench.peers.contestants import Running, naming
from bench.peers.heard import ChatClient, Heard, computed_tokens
from bench.peers.prompts import fresh_questions, system_message, text_tokens
from bench.peers.question import NATURAL_TOKENS_MAX, Answer, Measures, Question, rows_of
from bench.peers.rows import PairRows, most, ratio
from sapwood import Message

CONVERSATIONS, TURNS, QUICK_TURNS, QUICK_TURN_TOKENS = 8, 6, 2, 24
TURNS_OVER_MLX_LM = 0.7
TURN_UNITS = {"turns_s": "s", "recomputed_tokens": "tokens", "prompt_tokens": "tokens"}


async def ask_turns(question: Question) -> Answer:
    """Raises BenchError."""
    async with AsyncExitStack() as stack:
        running = await question.start_all(stack)
        size = (QUICK_TURNS, QUICK_TURN_TOKENS) if question.quick else (TURNS, NATURAL_TOKENS_MAX)

        async def turn(side: str, number: int) -> Measures:
            return await conversations(running[side], number, *size)

        for side in running:
            with naming(side):
                await conversations(running[side], -1, 1, QUICK_TURN_TOKENS)
        found = await question.alternations(list(running), turn, "six turns")
    rows = rows_of(found, TURN_UNITS, CONVERSATIONS, ("tokens", "resets"))
    plan = question.pair.plan
    return Answer(tuple(rows), tuple(turn_figures(plan.name, plan.title, PairRows(rows))))


async def conversations(running: Running, number: int, turns: int, tokens_max: int) -> Measures:
    heard: list[Heard] = []
    asked = fresh_questions(CONVERSATIONS * turns, skipped=(number + 1) * CONVERSATIONS * turns)

    async def talk(client: ChatClient, at: int) -> None:
        said = [system_message()]
        for question in asked[at::CONVERSATIONS]:
            said.append(Message("user", question))
            heard.append(await client.ask(said, tokens_max))
            said.append(Message("assistant", heard_text(heard[-1])))

    async with (
        running.clients(running.address, CONVERSATIONS) as clients,
        anyio.create_task_group() as tasks,
    ):
        for at, client in enumerate(clients):
            tasks.start_soon(talk, client, at)
    return turn_measures(heard)


def heard_text(heard: Heard) -> str:
    """Without the space around it, as chat templates trim it."""
    return heard.text.strip()


def turn_measures(heard: list[Heard]) -> dict[str, float]:
    computed = computed_tokens(heard)
    found = {
        "turns_s": max(h.ended for h in heard) - min(h.asked for h in heard),
        "prompt_tokens": float(sum(h.prompt_tokens for h in heard)),
        "tokens": float(sum(text_tokens(h.text) for h in heard)),
        "resets": float(sum(h.resets for h in heard)),
    }
    return found | ({} if computed is None else {"recomputed_tokens": float(computed)})


def turn_figures(pair: str, title: str, rows: PairRows) -> Iterator[Figure]:
    ours, lm = (rows.find(name, "turns_s", CONVERSATIONS) for name in ("ours", "mlx_lm"))
    what = f"{title}: six turns of eight conversations, ours ÷ mlx_lm.server"
    yield from ratio(f"turns/{pair}/time", what, ours, lm, most(TURNS_OVER_MLX_LM))
    ours, lm = (rows.find(name, "recomputed_tokens", CONVERSATIONS) for name in ("ours", "mlx_lm"))
    yield from ratio(f"turns/{pair}/recomputed", f"{what}, tokens computed again", ours, lm, None)

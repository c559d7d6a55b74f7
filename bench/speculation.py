"""What MTP gains: the bundled demo pair, whose drafter was trained, with 1, 8 and 16 clients.

- Greedy replies to plain questions, to their natural end: in float32 on a CPU lossless speculation
  gives both sides the same tokens, and every run checks that it gave as many. On a GPU replies may
  part within rounding, so there both counts are said and nothing is checked.
- Prompts repeat, so both sides find them in the tree: this is about decoding.
- One client asks all sixteen questions one after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import anyio
import mlx.core as mx

from bench.clients import Group, Served, connected
from bench.measure import BenchError, Figure, alternated
from bench.setup import Setup
from sapwood import AsyncClient, Message
from sapwood.client.values import GenerateOptions
from sapwood.daemon.demo.process import serve_command

SPECULATION_OPTIONS = GenerateOptions(max_tokens=160)
QUESTIONS = (
    "What is a river?",
    "Tell me a story about a fox.",
    "What is bread made of?",
    "Tell me a long story about a boat and the sea.",
    "What is the moon?",
    "Tell me a story about a dog.",
    "What is a bicycle?",
    "Tell me a short story about a mouse.",
    "List five animals.",
    "Tell me a story about a bear in the winter.",
    "What is a hammer?",
    "Write a story about an old tree.",
    "What is honey?",
    "Tell me a story about two friends.",
    "What is a lighthouse?",
    "Tell me a story about a bird.",
)
COMPANIES = (1, 8, 16)


def measure(setup: Setup) -> list[Figure]:
    with setup.daemon(serve_command()) as daemon:
        return anyio.run(partial(_measure, daemon.address, setup))


async def _measure(address: str, setup: Setup) -> list[Figure]:
    pairs = {n: (Group("depth 0", n > 1, 0), Group("MTP", n > 1, None)) for n in COMPANIES}
    async with connected(address, len(QUESTIONS)) as clients:
        for group in pairs[len(QUESTIONS)]:  # warms the tree, the shapes and the depth policy
            await _serve(clients, group)
        for run in range(setup.runs):
            for n, (plain, mtp) in alternated(list(pairs.items()), run):
                asking = clients[: n if n > 1 else len(QUESTIONS)]
                for group in alternated((plain, mtp), run):
                    group.served.append(await _serve(asking, group))
                setup.say(f"run {run + 1}: {_story(n, plain.served[-1], mtp.served[-1])}")
    alone, company = pairs[1][1], pairs[len(QUESTIONS)][1]
    title = "Demo pair with MTP: 16 clients together ÷ one by one"
    return [
        *(_figure(n, *pair) for n, pair in pairs.items()),
        Figure("speculation/company", title, company.side, alone.side),
    ]


async def _serve(clients: Sequence[AsyncClient], group: Group) -> Served:
    prompts = [[Message("user", question)] for question in QUESTIONS[: len(clients)]]
    return await group.serve(clients, prompts, SPECULATION_OPTIONS)


def _story(clients: int, plain: Served, mtp: Served) -> str:
    rates = f"MTP {mtp.tokens_per_s:.0f}, depth 0 {plain.tokens_per_s:.0f} tokens/s"
    if plain.tokens == mtp.tokens:
        return f"clients {clients}: {rates}"
    counts = f"{mtp.tokens} tokens with MTP, {plain.tokens} without"
    if mx.default_device() == mx.Device(mx.cpu):
        raise BenchError(f"{counts}: not lossless")
    return f"clients {clients}: {rates}; {counts}"


def _figure(clients: int, plain: Group, mtp: Group) -> Figure:
    who = "1 client" if clients == 1 else f"{clients} clients"
    title = f"Demo pair, {who}: MTP ÷ depth 0"
    return Figure(f"speculation/{clients}", title, mtp.side, plain.side, details=mtp.acceptance())

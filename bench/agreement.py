"""How many replies are the same in company with drafts as alone without: a share, no verdict.

- One real daemon. Every prompt is asked twice, greedy and past the tree: in companies of 16 with 3
  drafts, and by itself with none. In float32 on a CPU all agree, near-ties aside; elsewhere
  a reply may part where two tokens lie within rounding.
- Told beside it: how far two replies went together before they parted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import anyio

from bench.clients import connected
from bench.flags import flag_count
from bench.speculation import QUESTIONS
from sapwood import AsyncClient, Message
from sapwood.client.values import CacheOptions, GenerateOptions
from sapwood.daemon import blas
from sapwood.daemon.demo.process import running, serve_command

COMPANY, DRAFTED, REPLY_TOKENS = 16, 3, 48
LOAD_S_MAX = 600.0  # of a whole model, from a disk

Tokens = tuple[int, ...]


def questions(count: int) -> list[str]:
    """So many, no two alike."""
    return [
        QUESTIONS[i % len(QUESTIONS)] + f" Say it in {2 + i // len(QUESTIONS)} sentences."
        for i in range(count)
    ]


async def ask_twice(address: str, asked: Sequence[str]) -> dict[str, Any]:
    """Both replies to every question, and how far they agree."""
    async with connected(address, COMPANY) as clients:
        model = await clients[0].get_model()
        depth = DRAFTED if model.drafter else 0
        together: list[Tokens] = []
        for first in range(0, len(asked), COMPANY):
            together += await _company(clients, asked[first : first + COMPANY], depth)
        alone = [await _reply(clients[0], question, 0) for question in asked]
    told = {"family": model.family, "quantization": model.quantization, "drafts": depth}
    return told | share_equal(together, alone)


def share_equal(together: Sequence[Tokens], alone: Sequence[Tokens]) -> dict[str, Any]:
    """Counts over pairs of replies; parted_at: tokens that those which parted had in common."""
    parted = [
        next(
            (i for i, (a, b) in enumerate(zip(*pair, strict=False)) if a != b), min(map(len, pair))
        )
        for pair in zip(together, alone, strict=True)
        if pair[0] != pair[1]
    ]
    return {
        "replies": len(alone),
        "equal": len(alone) - len(parted),
        "share_equal": 1 - len(parted) / len(alone),
        "tokens": sum(map(len, alone)),
        "parted_at": sorted(parted),
    }


async def _company(
    clients: Sequence[AsyncClient], asked: Sequence[str], depth: int
) -> list[Tokens]:
    replies: dict[int, Tokens] = {}

    async def one(index: int) -> None:
        replies[index] = await _reply(clients[index], asked[index], depth)

    async with anyio.create_task_group() as tasks:
        for index in range(len(asked)):
            tasks.start_soon(one, index)
    return [replies[index] for index in range(len(asked))]


async def _reply(client: AsyncClient, question: str, depth: int) -> Tokens:
    options = GenerateOptions(
        max_tokens=REPLY_TOKENS,
        temperature=0.0,
        draft_tokens=depth,
        cache=CacheOptions(bypass=True),
    )
    async with client.generate([Message("user", question)], **options) as stream:
        return (await stream.collect()).token_ids


def main(argv: Sequence[str]) -> int:
    """Prints one JSON object. Flags behind --prompts go to `serve`."""
    parser = argparse.ArgumentParser(prog="python -m bench.agreement", allow_abbrev=False)
    parser.add_argument("--prompts", type=flag_count, default=200, metavar="N")
    arguments, flags = parser.parse_known_args(argv)
    deadline = time.monotonic() + LOAD_S_MAX
    with running(serve_command(*flags), blas.environment(os.environ), deadline) as daemon:
        found = anyio.run(partial(ask_twice, daemon.address, questions(arguments.prompts)))
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

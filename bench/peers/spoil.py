"""`python -m bench.peers.spoil NOISE ...`: how often the target accepts a spoilt draft.

- Measured on the bundled target, which is the heavy one's function, at depth 1: the share of first
  drafts that are accepted, over greedy replies to `QUESTIONS_ASKED` questions.
- The noises of the pairs were found with it. What a benchmark reports was measured in its own runs.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import anyio

from bench.peers.grpc_clients import our_clients
from bench.peers.pairs import PairPlan
from bench.peers.prompts import chats
from bench.setup import START_S_MAX
from sapwood.daemon import blas
from sapwood.daemon.demo.process import running, serve_command

QUESTIONS_ASKED, SPOILT_REPLY_TOKENS = 64, 160


def acceptance_of(noise: float) -> float:
    """Accepted ÷ drafted at depth 1."""
    with tempfile.TemporaryDirectory() as folder:
        pair = PairPlan("spoilt", "", noise=noise).write(Path(folder))
        flags = ["--model", str(pair.target), "--draft", str(pair.drafter)]
        deadline = time.monotonic() + START_S_MAX
        with running(serve_command(*flags), blas.environment(os.environ), deadline) as daemon:
            return anyio.run(partial(_ask_all, daemon.address))


async def _ask_all(address: str) -> float:
    drafts = accepted = 0
    async with our_clients(address, 1, draft_tokens=1) as (client,):
        for chat in chats(QUESTIONS_ASKED):
            heard = await client.ask(chat, SPOILT_REPLY_TOKENS)
            drafts += heard.drafts or 0
            accepted += heard.accepted or 0
    return accepted / drafts


def main(argv: Sequence[str]) -> int:
    for noise in map(float, argv):
        print(f"noise {noise:g}: {acceptance_of(noise):.3f} accepted", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

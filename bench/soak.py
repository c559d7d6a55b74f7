"""Sixteen clients on one real daemon for as long as asked: does its memory stay what it says.

- Each client talks in sessions of some turns, with drafts, one system prompt for all; now and then
  one leaves in the middle of a reply.
- The metrics are read all the while. Of every `memory_...` metric and of the tree's nodes: first,
  last, least and most. A metric that a daemon does not have is named missing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import anyio
from anyio import to_thread

from bench.agreement import LOAD_S_MAX
from bench.clients import connected
from bench.flags import flag_s
from bench.speculation import QUESTIONS
from sapwood import AsyncClient, Delta, Message
from sapwood.client.values import GenerateOptions
from sapwood.daemon import blas
from sapwood.daemon.demo.process import running, serve_command
from sapwood.daemon.demo.scrape import Counters, scrape, settled, total

CLIENTS, TURNS_MAX, SOAK_TOKENS_MAX, LEAVING = 16, 6, 96, 0.05
READ_EVERY_S = 5.0
SOAK_SYSTEM = "You answer briefly and in plain words."
WANTED = ("memory_bytes", "memory_unaccounted_bytes", "memory_buffers", "tree_nodes")


class Series:
    """The first, last, least and most of every sample that tells of memory."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}
        self.readings = 0

    def add(self, counters: Counters) -> None:
        """One reading of the metrics."""
        self.readings += 1
        for (name, label), value in counters.items():
            if name.startswith("memory_") or name == "tree_nodes":
                key = f"{name} {label}".rstrip()
                known = self.found.setdefault(key, {"first": value, "least": value, "most": value})
                known |= {
                    "last": value,
                    "least": min(value, known["least"]),
                    "most": max(value, known["most"]),
                }

    @property
    def missing(self) -> list[str]:
        """Metrics that were looked for and that the daemon does not have."""
        return [name for name in WANTED if not any(key.startswith(name) for key in self.found)]


async def soak(address: str, metrics: str, seconds: float) -> dict[str, Any]:
    """Requests by how they ended for the clients, and what the metrics said."""
    counts = {"finished": 0, "left": 0, "tokens": 0}
    series = Series()
    async with connected(address, CLIENTS) as clients:
        with anyio.move_on_after(seconds):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_watch, metrics, series)
                for number, client in enumerate(clients):
                    tasks.start_soon(_talk, client, random.Random(number), counts)
    last = await to_thread.run_sync(settled, metrics)
    series.add(last)
    return counts | {
        "seconds": seconds,
        "generated_tokens": total(last, "generated_tokens_total"),
        "failed": total(last, "requests_total", "failed"),
        "readings": series.readings,
        "memory": series.found,
        "missing": series.missing,
    }


async def _watch(metrics: str, series: Series) -> None:
    while True:
        series.add(await to_thread.run_sync(scrape, metrics))
        await anyio.sleep(READ_EVERY_S)


async def _talk(client: AsyncClient, chance: random.Random, counts: dict[str, int]) -> None:
    while True:
        said = [Message("system", SOAK_SYSTEM)]
        for _ in range(chance.randint(1, TURNS_MAX)):
            said.append(Message("user", chance.choice(QUESTIONS)))
            said.append(Message("assistant", await _turn(client, said, chance, counts)))


async def _turn(
    client: AsyncClient, said: Sequence[Message], chance: random.Random, counts: dict[str, int]
) -> str:
    options = GenerateOptions(
        max_tokens=chance.randint(8, SOAK_TOKENS_MAX), temperature=chance.choice((0.0, 0.8))
    )
    leaves = chance.random() < LEAVING
    text = ""
    async with client.generate(list(said), **options) as stream:
        async for event in stream:
            if isinstance(event, Delta):
                text += event.text
                counts["tokens"] += len(event.token_ids)
                if leaves:
                    counts["left"] += 1
                    return text or "Yes."
    counts["finished"] += 1
    return text or "Yes."


def main(argv: Sequence[str]) -> int:
    """Prints one JSON object. Flags behind --seconds go to `serve`."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", allow_abbrev=False)
    parser.add_argument("--seconds", type=flag_s, default=3600.0)
    arguments, flags = parser.parse_known_args(argv)
    environ: Mapping[str, str] = blas.environment(os.environ)
    deadline = time.monotonic() + LOAD_S_MAX
    with running(serve_command(*flags), environ, deadline) as daemon:
        found = anyio.run(partial(soak, daemon.address, daemon.metrics, arguments.seconds))
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

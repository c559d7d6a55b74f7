"""M1 as an operator sees it: what the device holds more than the ledger says, over a real run.

The bundled pair in a daemon of its own, scraped while clients come, share prefixes, draw in many
ways and leave; at the end what is left is no more than the ledger says, to a few scalars.
"""

from __future__ import annotations

import asyncio
import os
import time
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sapwood import AsyncClient, GenerateOptions, Message
from sapwood.daemon.demo.process import running, serve_command
from sapwood.model import device

START_S_MAX = 90.0
BUDGET_BYTES = 64 << 20
# Beside the ledger: the frontier, a row for each slot, and what MLX keeps of its own. That a buffer
# which it kept is larger than what it is handed out for is in the ledger.
SLACK_BYTES = 64 << 10
SAMPLERS: tuple[GenerateOptions, ...] = (
    {"max_tokens": 40, "temperature": 0.0},
    {"max_tokens": 40, "temperature": 1.0, "seed": 3},
    {"max_tokens": 40, "temperature": 0.8, "top_k": 40, "top_p": 0.9},
    {"max_tokens": 40, "temperature": 1.0, "repetition_penalty": 1.2},
)


def scrape(address: str) -> dict[str, float]:
    """Gauges of memory by name, and by kind where they have one."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as page:
        text = page.read().decode()
    return {
        sample.name.removeprefix("sapwood_") + "".join(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if family.name.startswith(("sapwood_memory", "sapwood_tree"))
    }


async def client(address: str, number: int) -> None:
    async with AsyncClient(address) as one:
        said = [Message("user", f"What is a river? {number % 2}")]
        for turn in range(3):
            reply = await one.generate(said, **SAMPLERS[(number + turn) % 4]).collect()
            said += [Message("assistant", reply.text or "."), Message("user", "And a tree?")]


async def watched(address: str, metrics: str) -> list[dict[str, float]]:
    """What every scrape said while six clients had three turns each."""
    seen: list[dict[str, float]] = []
    clients = asyncio.gather(*(client(address, number) for number in range(6)))
    while not clients.done():
        seen.append(await asyncio.to_thread(scrape, metrics))
        await asyncio.sleep(0.02)
    await clients
    return seen


@pytest.mark.long
def test_m1_nothing_is_held_that_nobody_counts() -> None:
    command = serve_command("--memory", str(BUDGET_BYTES))
    with running(command, os.environ, time.monotonic() + START_S_MAX) as daemon:
        seen = asyncio.run(watched(daemon.address, daemon.metrics))
        deadline = time.monotonic() + 10
        while (rest := scrape(daemon.metrics))["memory_byteslive"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert len(seen) > 10 and max(each["memory_byteslive"] for each in seen) > 0
    most = max(each["memory_unaccounted_bytes"] for each in seen)
    assert most <= SLACK_BYTES, f"{most} bytes are held by nobody"
    reserved = (2 * rest["tree_nodes"] + rest["memory_buffersweights"]) * device.reuse_bytes()
    for layer in ("full", "sliding"):
        assert rest[f"tree_bytes{layer}device"] > SLACK_BYTES, "too little to see a mistake in"
    assert -reserved <= rest["memory_unaccounted_bytes"] <= SLACK_BYTES

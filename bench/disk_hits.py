"""What a hit on disk takes beside computing: a warm restart's first prompt, of the heavy pair.

- A run is one folder and two daemons, one after the other: the first computes a prompt that nobody
  has sent before and writes it down, the second finds it. Each has answered a short prompt before.
- Time is the client's, from asking to the first token. The second's includes waiting for the folder
  to be read, and the last tokens, behind the last whole block, that it computes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence

from bench.measure import BenchError, Figure, Side, at_most
from bench.peers.pairs import WrittenPair, pair_plans
from bench.setup import Setup
from sapwood import Client, Tier
from sapwood.daemon.demo.process import serve_command

_TOKENS, _QUICK_TOKENS = 3900, 600
_SETTLED_S, _WRITTEN_S_MAX = 1.0, 300.0


def measure_hits(setup: Setup) -> Figure:
    pair = pair_plans()["bundled" if setup.quick else "heavy"].write(setup.folder)
    tokens = _QUICK_TOKENS if setup.quick else _TOKENS
    hits, colds, found = [], [], 0
    for run in range(setup.runs):
        prompt = setup.prompt(tokens)
        with tempfile.TemporaryDirectory(prefix="sapwood-bench-disk-") as folder:
            cold, _ = _asked(setup, pair, folder, prompt)
            hit, found = _asked(setup, pair, folder, prompt)
        hits.append(hit)
        colds.append(cold)
        setup.say(f"run {run + 1}: cold {cold:.2f} s, from disk {hit:.2f} s, {found} tokens found")
    return Figure(
        "on_disk/hit",
        f"the first token behind {tokens} tokens after a restart: from disk ÷ computed",
        Side("from disk", "s", tuple(hits)),
        Side("computed", "s", tuple(colds)),
        at_most(0.25),
        details={"cached_tokens": float(found)},
    )


def _asked(
    setup: Setup, pair: WrittenPair, folder: str, prompt: Sequence[int]
) -> tuple[float, int]:
    """Seconds to the first token, and how many were cached; leaves when all is written."""
    flags = ["--model", str(pair.target), "--draft", "none", "--cache-dir", f"{folder}/cache"]
    with setup.daemon([*serve_command(), *flags]) as daemon, Client(daemon.address) as client:
        client.generate(setup.prompt(8), max_tokens=2).collect()
        began = time.perf_counter()
        reply = client.generate(list(prompt), max_tokens=1, temperature=0.0).collect()
        seconds = time.perf_counter() - began
        until_written(client)
        return seconds, reply.finish.usage.cached_tokens


def until_written(client: Client) -> None:
    """Nothing more has come for a while. Raises BenchError."""
    last, deadline = -1, time.monotonic() + _WRITTEN_S_MAX
    while time.monotonic() < deadline:
        stored = client.cache_stats().stored
        now = sum(size for (tier, _), size in stored.items() if tier is Tier.DISK)
        if now == last > 0:
            return
        last = now
        time.sleep(_SETTLED_S)
    raise BenchError("what was computed was not written")

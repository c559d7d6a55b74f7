"""Host time of a step at 32 decoding rows: what the engine loop does while no result is computed.

- 32 greedy clients over real gRPC on a daemon with a clock (bench.stopwatch); a fresh daemon per
  run and side. Only steps count in which all 32 decode and nobody comes, goes or is in prefill.
- Host: plan + commit + emit, as the project promises. Building the graph is host work too, and its
  own figure. Of it the part counts that is not spent in calls of the device.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import anyio

from bench.clients import Group, connected
from bench.measure import BenchError, Figure, Side, alternated, at_most
from bench.setup import Setup
from bench.stopwatch import TimedStep
from sapwood.client.values import GenerateOptions

ROWS = 32
_PROMPT_TOKENS, _NEW_TOKENS, _QUICK_TOKENS = 64, 64, 32
STEPS_MIN = 8
SIDES = (("plain", 0), ("mtp", None))

Account = dict[str, float]


def measure(setup: Setup) -> list[Figure]:
    found: dict[str, list[Account]] = {name: [] for name, _ in SIDES}
    for run in range(setup.runs):
        for name, draft_tokens in alternated(SIDES, run):
            account = mean_step(_run(setup, draft_tokens))
            found[name].append(account)
            shown = ", ".join(
                f"{part} {account[part] * 1e3:.2f}" for part in ("host", "build", "step")
            )
            setup.say(f"run {run + 1}: {name}: {shown} ms")
    return [
        *_figures("plain", "depth 0", found["plain"]),
        *_figures("mtp", "MTP", found["mtp"]),
    ]


def _run(setup: Setup, draft_tokens: int | None) -> list[TimedStep]:
    """The steps of one burst of clients that were full and nothing but decoding."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "steps.json")
        with setup.synthetic([sys.executable, "-m", "bench.stopwatch", str(file)]) as daemon:
            anyio.run(partial(_burst, daemon.address, setup, draft_tokens))
        steps = [TimedStep(**step) for step in json.loads(file.read_text())]
    return full_steps(steps)


async def _burst(address: str, setup: Setup, draft_tokens: int | None) -> None:
    options = GenerateOptions(
        max_tokens=_QUICK_TOKENS if setup.quick else _NEW_TOKENS, ignore_eos=True
    )
    async with connected(address, ROWS) as clients:
        prompts = [setup.prompt(_PROMPT_TOKENS) for _ in clients]
        await Group("", True, draft_tokens).serve(clients, prompts, options)


def full_steps(steps: Sequence[TimedStep]) -> list[TimedStep]:
    """Raises BenchError where there are too few to say anything."""
    full = [s for s in steps if s.rows == ROWS and not s.prefill_tokens and not s.moves]
    if len(full) < STEPS_MIN:
        raise BenchError(f"only {len(full)} steps had {ROWS} decoding rows and nothing else")
    return full


def mean_step(steps: Sequence[TimedStep]) -> Account:
    """Mean seconds of a step's parts, of the whole step, and its mean number of drafts."""
    parts = ("plan", "build", "device", "emit", "commit", "host", "step")
    means = {part: sum(getattr(s, f"{part}_s") for s in steps) / len(steps) for part in parts}
    return means | {"drafted": sum(s.drafted for s in steps) / len(steps), "steps": len(steps)}


def _figures(name: str, what: str, accounts: Sequence[Account]) -> list[Figure]:
    def side(part: str) -> Side:
        return Side(part, "s", tuple(account[part] for account in accounts))

    details = {
        "mean_drafted_tokens": sum(a["drafted"] for a in accounts) / len(accounts),
        "steps": sum(a["steps"] for a in accounts),
        **{
            f"{part}_s": sum(a[part] for a in accounts) / len(accounts)
            for part in ("plan", "commit", "emit", "build", "device")
        },
    }
    step = side("step")
    host = f"32 rows, {what}: plan + commit + emit ÷ step"
    build = f"32 rows, {what}: building the graph ÷ step"
    return [
        Figure(f"host/{name}", host, side("host"), step, at_most(0.05), details),
        Figure(f"host/{name}_build", build, side("build"), step),
    ]

"""What strict numerics cost: steps of N rows, and reading a prompt, strict against fast.

- In this process, core and runner in line: the given pair, loaded once, rows at an equal pinned
  depth, greedy. Both sides answer the same requests.
- A run is worth its median step with all rows in it and nobody who comes or goes; of the prompt,
  all steps that read it.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from dataclasses import replace

from bench.in_line import InLineStep, in_line, served_in_line
from bench.measure import BenchError, Figure, Side, alternated, at_most
from bench.setup import Setup
from sapwood.daemon.engine.loaded import Loaded
from sapwood.scheduler.events import Request
from sapwood.scheduler.sampling import Sampling

STRICT_ROWS, QUICK_STRICT_ROWS = (1, 8, 16), (1, 4)
STRICT_PROMPT_TOKENS, STRICT_REPLY_TOKENS, QUICK_STRICT_REPLY_TOKENS = 128, 96, 32
READ_TOKENS, QUICK_READ_TOKENS = 1024, 128
STRICT_DRAFTS = 3


def measure(setup: Setup) -> list[Figure]:
    pair = setup.load_given_pair()
    depth = 0 if pair.assistant is None else STRICT_DRAFTS
    counts = QUICK_STRICT_ROWS if setup.quick else STRICT_ROWS
    titles = {f"strict/{n}": f"{n} rows, depth {depth}: a strict step ÷ a fast one" for n in counts}
    read = QUICK_READ_TOKENS if setup.quick else READ_TOKENS
    titles["strict/prompt"] = f"A prompt of {read} tokens: strict ÷ fast"
    found: dict[str, dict[str, list[float]]] = {name: {} for name in titles}
    with ExitStack() as stack:
        sides = [("fast", stack.enter_context(in_line(pair)))]
        strict = replace(pair, kernels=pair.kernels.strictly())
        sides.append(("strict", stack.enter_context(in_line(strict))))
        for run in range(-1, setup.runs):  # the first one warms
            for side, loaded in alternated(sides, run):
                seconds = [_step_s(loaded, setup, n, depth) for n in counts]
                seconds.append(_prompt_s(loaded, setup, read))
                if run < 0:
                    continue
                for name, value in zip(titles, seconds, strict=True):
                    found[name].setdefault(side, []).append(value)
                told = ", ".join(f"{value * 1e3:.1f}" for value in seconds)
                setup.say(f"run {run + 1}: {side} {told} ms")
    return [
        Figure(
            name, title, Side("strict", "s", tuple(found[name]["strict"])),
            Side("fast", "s", tuple(found[name]["fast"])),
            at_most(2) if name == "strict/16" else None,
        )
        for name, title in titles.items()
    ]  # fmt: skip


def _step_s(loaded: Loaded, setup: Setup, rows: int, depth: int) -> float:
    """Median seconds of a step with all rows in it."""
    tokens = QUICK_STRICT_REPLY_TOKENS if setup.quick else STRICT_REPLY_TOKENS
    requests = [
        Request(
            id, b"bench", tuple(setup.prompt(STRICT_PROMPT_TOKENS)), tokens, Sampling(),
            ignore_eos=True, depth=depth, cache_bypass=True,
        )
        for id in range(rows)
    ]  # fmt: skip
    seconds: list[float] = []

    def told(step: InLineStep) -> None:
        full = [row.depth for row in step.plan.decodes] == [depth] * rows
        if full and not step.moves and not step.plan.prefills:
            seconds.append(step.run_s)

    served_in_line(loaded, requests, told)
    if len(seconds) < 4:
        raise BenchError("too few steps had all rows in them")
    return statistics.median(seconds)


def _prompt_s(loaded: Loaded, setup: Setup, tokens: int) -> float:
    """Seconds of the steps that read one prompt."""
    request = Request(
        0, b"bench", tuple(setup.prompt(tokens)), 1, Sampling(), depth=0, cache_bypass=True
    )
    seconds: list[float] = []
    served_in_line(loaded, [request], lambda step: seconds.append(step.run_s))
    return sum(seconds)

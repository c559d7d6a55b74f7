"""What strict numerics cost: steps of N rows, and reading a prompt, strict against fast.

- In this process, core and runner in line: the given pair, loaded once, rows at an equal pinned
  depth, greedy. Both sides answer the same requests.
- A run is worth its median step with all rows in it and nobody who comes or goes; of the prompt,
  all steps that read it.
- Each in seconds, and in seconds of this process's CPU time: what others compute beside a run makes
  the first of them longer, and hardly the second.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import NamedTuple

from bench.in_line import InLineStep, in_line, served_in_line
from bench.measure import BenchError, Figure, Side, alternated, at_most
from bench.setup import Setup
from sapwood.daemon.engine.loaded import Loaded
from sapwood.scheduler.events import Request
from sapwood.scheduler.sampling import Sampling

STRICT_ROWS, QUICK_STRICT_ROWS = (1, 8, 16), (1, 4)
STRICT_PROMPT_TOKENS, STRICT_REPLY_TOKENS = 128, 32
READ_TOKENS, QUICK_READ_TOKENS = 1024, 128
STRICT_DRAFTS = 3
ITL_TARGET = 50.0  # all prompts are read before the first reply ends


class Took(NamedTuple):
    """Seconds, and those of CPU time."""

    wall_s: float
    cpu_s: float


def measure(setup: Setup) -> list[Figure]:
    pair = setup.load_given_pair()
    depth = 0 if pair.assistant is None else STRICT_DRAFTS
    counts = QUICK_STRICT_ROWS if setup.quick else STRICT_ROWS
    titles = {f"strict/{n}": f"{n} rows, depth {depth}: a strict step ÷ a fast one" for n in counts}
    read = QUICK_READ_TOKENS if setup.quick else READ_TOKENS
    titles["strict/prompt"] = f"A prompt of {read} tokens: strict ÷ fast"
    found: dict[str, dict[str, list[Took]]] = {name: {} for name in titles}
    with ExitStack() as stack:
        strict = replace(pair, kernels=pair.kernels.strictly())
        sides = [
            (side, stack.enter_context(in_line(one, itl_target=ITL_TARGET)))
            for side, one in (("fast", pair), ("strict", strict))
        ]
        for run in range(-1, setup.runs):  # the first one warms
            for side, loaded in alternated(sides, run):
                took = [_step(loaded, setup, n, depth) for n in counts]
                took.append(_prompt(loaded, setup, read))
                if run < 0:
                    continue
                for name, value in zip(titles, took, strict=True):
                    found[name].setdefault(side, []).append(value)
                told = ", ".join(f"{t.wall_s * 1e3:.1f} ({t.cpu_s * 1e3:.1f} CPU)" for t in took)
                setup.say(f"run {run + 1}: {side} {told} ms")
    return [
        figure for name, title in titles.items() for figure in _figures(name, title, found[name])
    ]


def _figures(name: str, title: str, found: Mapping[str, Sequence[Took]]) -> Iterator[Figure]:
    goal = at_most(2) if name == "strict/16" else None
    for kind, unit, target in (("wall_s", "s", goal), ("cpu_s", "CPU s", None)):
        ours, peer = (
            Side(side, unit, tuple(getattr(took, kind) for took in found[side]))
            for side in ("strict", "fast")
        )
        yield Figure(
            name if kind == "wall_s" else f"{name}/cpu",
            title if kind == "wall_s" else f"{title}, CPU time",
            ours,
            peer,
            target,
        )


def _step(loaded: Loaded, setup: Setup, rows: int, depth: int) -> Took:
    """Of the median step with all rows in it, by each."""
    requests = [
        Request(
            id, b"bench", tuple(setup.prompt(STRICT_PROMPT_TOKENS)), STRICT_REPLY_TOKENS,
            Sampling(), ignore_eos=True, depth=depth, cache_bypass=True,
        )
        for id in range(rows)
    ]  # fmt: skip
    took: list[Took] = []
    before = time.process_time()

    def told(step: InLineStep) -> None:
        nonlocal before
        begun, before = before, time.process_time()
        full = [row.depth for row in step.plan.decodes] == [depth] * rows
        if full and not step.moves and not step.plan.prefills:
            took.append(Took(step.run_s, before - begun))

    served_in_line(loaded, requests, told)
    if len(took) < 4:
        raise BenchError("too few steps had all rows in them")
    return Took(*(statistics.median(each) for each in zip(*took, strict=True)))


def _prompt(loaded: Loaded, setup: Setup, tokens: int) -> Took:
    """Of the steps that read one prompt, together."""
    request = Request(
        0, b"bench", tuple(setup.prompt(tokens)), 1, Sampling(), depth=0, cache_bypass=True
    )
    seconds: list[float] = []
    begun = time.process_time()
    served_in_line(loaded, [request], lambda step: seconds.append(step.run_s))
    return Took(sum(seconds), time.process_time() - begun)

"""Live sequences behind one prefix: by reference, against a copy of it for each of them.

- In this process, without clients: so many rows decode greedily without drafts, each with tokens of
  its own behind the same prefix. Each turn is the same step again, so that no context grows. There
  is no text: K/V is zeros, over which attention takes as long.
- copied: each slot's row holds the prefix too, as before it could be held by reference. alone: by
  reference, but each its own range, which nobody shares.
- bytes: K/V of full layers, rows and prefix together, ÷ what it would be if every token were held
  once and no row had room to grow. all_bytes: the same of all layers, where the sliding layers of a
  token that a window sees count once as well.
- The three alternate step by step; a run's value is its median step.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, TypeVar

import mlx.core as mx

from bench.at_once import ASKED, measure_at_once
from bench.measure import Figure, Side, alternated, at_most
from bench.peers.prompts import fresh_questions
from bench.setup import Setup
from sapwood.cache.arrays.ranges import Range
from sapwood.model.pair import Pair
from sapwood.model.runner import Runner
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.plan import Admit, DecodeRow, StepPlan
from sapwood.scheduler.sampling import Sampling

PREFIX_TOKENS, OWN_TOKENS = 3900, 128
_STEPS, _QUICK_STEPS, _WARM_STEPS = 12, 3, 2
_ROW_COUNTS, _QUICK_ROW_COUNTS = (1, 4, 16, 32), (1, 4)
_TOKEN = 100  # a plain one of the bundled tokenizer

Layout = Literal["copied", "referred", "alone"]
_Side = TypeVar("_Side")
LAYOUTS: tuple[Layout, ...] = ("copied", "referred", "alone")


class HeldBytes(NamedTuple):
    """K/V of the layers of each kind."""

    full: int
    sliding: int


class Company:
    """Rows of a runner of their own, all at the same place. Who made it closes the runner."""

    def __init__(self, pair: Pair, layout: Layout, rows: int, prefix: int) -> None:
        limits = Limits()
        self.runner = Runner(pair, max(rows, limits.slots_max), limits.draft_depth_max)
        self._end = prefix + OWN_TOKENS
        config = pair.target_config
        window = min(config.text.window, prefix)
        self._window_bytes = window * config.kv_bytes_per_token("sliding", pair.dtype.size)
        slots = range(rows)
        admits = tuple(Admit(slot, 0, (), Sampling(), self._end + 1) for slot in slots)
        self.runner.wait(self.runner.submit(StepPlan(1, admits=admits)))
        self.ranges: list[Range] = []
        for slot in slots:
            self._fill(slot, layout, prefix)
        rows_ = (DecodeRow(slot, self._end, _TOKEN, 0, 1) for slot in slots)
        self.plan = StepPlan(2, decodes=tuple(rows_))

    @property
    def held(self) -> HeldBytes:
        """Everybody's rows and rings, and what is stored: each range once, one window of it."""
        full, sliding = (
            sum(a.nbytes for store in stores for a in store.arrays)
            for stores in (self.runner.caches.full, self.runner.caches.sliding)
        )
        stored = sum(held.nbytes for held in self.ranges)
        return HeldBytes(full + stored, sliding + self._window_bytes)

    def step(self) -> None:
        self.runner.wait(self.runner.submit(self.plan))
        for row in self.plan.decodes:  # taken back
            self.runner.caches.commit(row.slot, self._end)

    def _fill(self, slot: int, layout: Layout, prefix: int) -> None:
        caches = self.runner.caches
        if layout != "copied":
            if layout == "alone" or not self.ranges:
                heads = tuple(store.pools.kv_heads for store in caches.full)
                shape = (2 * sum(heads), prefix, caches.full[0].pools.head_dim)
                self.ranges.append(Range(0, prefix, mx.zeros(shape, caches.dtype), heads))
                mx.eval(self.ranges[-1].stack)
            caches.rows.free(slot)
            caches.refer(slot, [(self.ranges[-1], 0, prefix)])
        caches.reserve(slot, self._end)  # K/V that nobody computed
        caches.commit(slot, self._end)
        caches.settle()


@dataclass(slots=True)
class _Found:
    """Of one number of rows: each layout's median step of every run, and its bytes."""

    steps_s: dict[Layout, list[float]]
    held: dict[Layout, HeldBytes]


def unique_bytes(pair: Pair, rows: int, prefix: int) -> HeldBytes:
    """Were every token held once, in sliding layers those within somebody's window."""
    config = pair.target_config
    window = config.text.window
    seen = min(window, prefix) + rows * min(window, OWN_TOKENS)
    return HeldBytes(
        (prefix + rows * OWN_TOKENS) * config.kv_bytes_per_token("full", pair.dtype.size),
        seen * config.kv_bytes_per_token("sliding", pair.dtype.size),
    )


def measure(setup: Setup) -> list[Figure]:
    pair = setup.load_given_pair()
    prefix = prefix_tokens(pair)
    figures: list[Figure] = []
    for rows in row_counts(setup):
        found = _Found({layout: [] for layout in LAYOUTS}, {})
        for run in range(setup.runs):
            _run(pair, rows, prefix, setup.quick, found)
            shown = ", ".join(f"{k} {1e3 * v[-1]:.1f} ms" for k, v in found.steps_s.items())
            setup.say(f"run {run + 1}: {rows} rows: {shown}")
        unique = unique_bytes(pair, rows, prefix)
        figures += figures_of(rows, prefix, found.steps_s, found.held, unique)
    return [*figures, measure_at_once(setup, pair, fresh_questions(ASKED))]


def prefix_tokens(pair: Pair) -> int:
    """How long the prefix is, which leaves a short context room behind it."""
    return min(PREFIX_TOKENS, pair.target_config.text.context_tokens_max // 2)


def row_counts(setup: Setup) -> tuple[int, ...]:
    """How many rows decode together, one number after another."""
    return _QUICK_ROW_COUNTS if setup.quick else _ROW_COUNTS


def timed(company: Company) -> float:
    """Seconds of a step."""
    began = time.perf_counter()
    company.step()
    return time.perf_counter() - began


def median_steps(sides: Mapping[_Side, Callable[[], float]], quick: bool) -> dict[_Side, float]:
    """Of each side its median step in seconds. They alternate; the first ones only warm."""
    seconds: dict[_Side, list[float]] = {side: [] for side in sides}
    for number in range(_WARM_STEPS + (_QUICK_STEPS if quick else _STEPS)):
        for side, step in alternated(list(sides.items()), number):
            seconds[side].append(step())
    return {side: statistics.median(found[_WARM_STEPS:]) for side, found in seconds.items()}


def _run(pair: Pair, rows: int, prefix: int, quick: bool, found: _Found) -> None:
    companies = {layout: Company(pair, layout, rows, prefix) for layout in LAYOUTS}
    gc.collect()
    sides = {layout: partial(timed, company) for layout, company in companies.items()}
    for layout, seconds in median_steps(sides, quick).items():
        found.steps_s[layout].append(seconds)
        found.held[layout] = companies[layout].held
        companies[layout].runner.close()


def figures_of(
    rows: int,
    prefix: int,
    steps_s: Mapping[Layout, Sequence[float]],
    held: Mapping[Layout, HeldBytes],
    unique: HeldBytes,
) -> list[Figure]:
    """A step by reference and each alone ÷ copied, and bytes held ÷ what is unique."""
    sides = {layout: Side(layout, "s", tuple(steps_s[layout])) for layout in LAYOUTS}
    where = f"{rows} rows behind {prefix} tokens"
    referred = held["referred"]
    details = {f"{layout}_bytes": float(held[layout].full) for layout in LAYOUTS}
    everything = {f"{layout}_bytes": float(sum(held[layout])) for layout in LAYOUTS}
    return [
        Figure(
            f"memory/step/{rows}", f"{where}: a step by reference ÷ with a copy each",
            sides["referred"], sides["copied"], at_most(0.8) if rows == 16 else None,
        ),
        Figure(
            f"memory/alone/{rows}", f"{where}, each its own: by reference ÷ copied",
            sides["alone"], sides["copied"],
        ),
        Figure(
            f"memory/bytes/{rows}", f"{where}: bytes of full layers ÷ unique",
            Side("held", "bytes", (float(referred.full),)),
            Side("unique", "bytes", (float(unique.full),)),
            at_most(1.15) if rows == 32 else None, details=details,
        ),
        Figure(
            f"memory/all_bytes/{rows}", f"{where}: bytes of all layers ÷ unique",
            Side("held", "bytes", (float(sum(referred)),)),
            Side("unique", "bytes", (float(sum(unique)),)),
            at_most(2) if rows == 32 else None, details=everything,
        ),
    ]  # fmt: skip

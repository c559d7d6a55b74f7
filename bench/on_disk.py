"""Prefixes on disk: what 8 bits do to a reply, and what a disk is worth where memory is short.

- Traces are computed with a quarter of the memory and a disk under it, and with all of it. Both
  sides are the production tree on the same trace, another one for each run; there is no clock.
- What a hit takes: bench/disk_hits.py; what 8 bits cost: bench/eight_bits.py.
- read: tokens that came from disk, as a share of all of prompts. disk_share: what lay there in the
  end, as a share of the memory that was to be had without it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.disk_hits import measure_hits
from bench.eight_bits import measure_eight_bits
from bench.measure import Figure, Side, at_most
from bench.replay.kinds import TRACE_KINDS
from bench.replay.ours import ProductionTree
from bench.replay.tiered import TieredTree
from bench.replay.trace import TRACE_BUDGET_BYTES, TRACE_SHAPE, TraceRequest, replay
from bench.setup import Setup

SMALLER = 4
_QUICK_SCALE = 0.5


@dataclass(frozen=True, slots=True)
class TieredTrace:
    """Shares of all tokens of prompts, but for disk_share."""

    computed: float  # with all the memory
    tiered: float  # with a part of it, and a disk
    without: float  # with the part alone
    read: float
    disk_share: float


def tiered_trace(trace: Sequence[TraceRequest]) -> TieredTrace:
    tiered = TieredTree(TRACE_SHAPE, TRACE_BUDGET_BYTES // SMALLER)
    smaller = ProductionTree(TRACE_SHAPE, TRACE_BUDGET_BYTES // SMALLER)
    computed = replay(tiered, trace)
    return TieredTrace(
        replay(ProductionTree(TRACE_SHAPE, TRACE_BUDGET_BYTES), trace),
        computed,
        replay(smaller, trace),
        tiered.read_tokens / sum(len(request.prompt) for request in trace),
        tiered.disk_bytes / TRACE_BUDGET_BYTES,
    )


def measure(setup: Setup) -> list[Figure]:
    first = [measure_hits(setup), measure_eight_bits(setup, setup.load_given_pair())]
    return [*first, *_traces(setup)]


def _traces(setup: Setup) -> list[Figure]:
    """A figure of each kind of trace."""
    figures = []
    for kind, draw in TRACE_KINDS.items():
        found = []
        for run in range(setup.runs):
            trace = draw(setup.seed + run, _QUICK_SCALE if setup.quick else 1.0)
            found.append(tiered_trace(trace))
            setup.say(f"run {run + 1}: {kind}: {found[-1]}")
        figures.append(figure_of(kind, found))
    return figures


def figure_of(kind: str, found: Sequence[TieredTrace]) -> Figure:
    details = {
        name: statistics.median(getattr(each, name) for each in found)
        for name in ("without", "read", "disk_share")
    }
    return Figure(
        f"on_disk/{kind}",
        f"{kind}: tokens computed with a quarter of the memory and a disk ÷ with all of it",
        Side("quarter and disk", "of prompts", tuple(each.tiered for each in found)),
        Side("all", "of prompts", tuple(each.computed for each in found)),
        at_most(1.1),
        details=details,
    )

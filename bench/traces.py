"""What is computed again of traces of prompts, in 4 GiB; and what the tree's own work costs.

- A figure of a kind: ours beyond the clairvoyant cache, as a share of what the best other policy is
  beyond it: 0 is as good as knowing the future, 1 no better than the best other.
- A run is a seed: the same trace for everybody, another one for each run. The best other is chosen
  run by run. Shares of recomputed prompt tokens, medians over runs, are the figure's details.
- freeing, matching, extending, splitting and merging are the production tree against itself, at two
  numbers of nodes.
- There is no device and no clock in a replay: the same seeds give the same figures on any machine.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence

from bench.measure import Figure, Side, alternated, at_most
from bench.replay.clairvoyant import Clairvoyant
from bench.replay.filled import TREE_WORK, FilledTree, work_s
from bench.replay.kinds import TRACE_KINDS
from bench.replay.others import EdgeLRU, InfiniteCache, PromptCacheLRU, StrideLRU
from bench.replay.ours import ProductionTree
from bench.replay.trace import (
    TRACE_BUDGET_BYTES,
    TRACE_SHAPE,
    CachePolicy,
    TraceRequest,
    replay,
)
from bench.setup import Setup
from sapwood.daemon import blas

QUICK_SCALE = 0.5
# A best other that is as good as the clairvoyant leaves nothing to divide by.
GAP_MIN = 0.001
NODES, NODES_MANY, PASSES = 1_000, 100_000, 5

POLICIES: Mapping[str, Callable[[Sequence[TraceRequest]], CachePolicy]] = {
    "infinite": lambda _: InfiniteCache(TRACE_SHAPE),
    "clairvoyant": lambda trace: Clairvoyant(TRACE_SHAPE, TRACE_BUDGET_BYTES, trace),
    "ours": lambda _: ProductionTree(TRACE_SHAPE, TRACE_BUDGET_BYTES),
    "edges": lambda _: EdgeLRU(TRACE_SHAPE, TRACE_BUDGET_BYTES),
    "prompt_caches": lambda _: PromptCacheLRU(TRACE_SHAPE, TRACE_BUDGET_BYTES),
    "strides": lambda _: StrideLRU(TRACE_SHAPE, TRACE_BUDGET_BYTES),
}
OTHERS = ("edges", "prompt_caches", "strides")

Shares = Mapping[str, float]  # by policy


def measure(setup: Setup) -> list[Figure]:
    setup.blas.add(blas.loaded(os.getpid()))
    found: dict[str, list[Shares]] = {kind: [] for kind in TRACE_KINDS}
    for run in range(setup.runs):
        for kind, shares in found.items():
            trace = TRACE_KINDS[kind](setup.seed + run, QUICK_SCALE if setup.quick else 1.0)
            shares.append({name: replay(make(trace), trace) for name, make in POLICIES.items()})
            shown = ", ".join(f"{name} {share:.3f}" for name, share in shares[-1].items())
            setup.say(f"run {run + 1}: {kind}: {shown}")
    return [*(kind_figure(kind, shares) for kind, shares in found.items()), *_tree_work(setup)]


def kind_figure(kind: str, runs: Sequence[Shares]) -> Figure:
    """Of one kind of traces; a run's shares by policy."""
    gaps = [min(run[name] for name in OTHERS) - run["clairvoyant"] for run in runs]
    return Figure(
        f"traces/{kind}",
        f"{kind}, computed beyond the clairvoyant: ours ÷ the best other",
        Side("ours", "share", tuple(run["ours"] - run["clairvoyant"] for run in runs)),
        Side("best other", "share", tuple(max(GAP_MIN, gap) for gap in gaps)),
        at_most(0.4),
        {name: statistics.median(run[name] for run in runs) for name in POLICIES},
    )


def _tree_work(setup: Setup) -> Iterator[Figure]:
    trees = {nodes: FilledTree(nodes) for nodes in (NODES, NODES_MANY)}
    for work, (title, _) in TREE_WORK.items():
        seconds: dict[int, list[float]] = {nodes: [] for nodes in trees}
        for run in range(setup.runs):
            for nodes in alternated(list(trees), run):
                seconds[nodes].append(work_s(trees[nodes], work, PASSES))
        many, few = (Side(f"{n:,} nodes", "s", tuple(seconds[n])) for n in (NODES_MANY, NODES))
        setup.say(
            ", ".join(f"{side.name}: {min(side.values) * 1e3:.2f} ms" for side in (many, few))
        )
        yield Figure(
            f"traces/{work}", f"{title}: {many.name} ÷ {few.name}", many, few, at_most(1.5)
        )

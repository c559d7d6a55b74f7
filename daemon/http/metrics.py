"""What Prometheus scrapes: one Collector over one immutable account per scrape.

- Reads the engine's Published reference and the gate's count of requests that never reached the
  core; nothing is incremented on any code path for the metrics' sake.
- Names and labels are those of the wire contract; every label value is there from the first scrape.
- Counters move at commit, before the message that tells of them is written.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    UnknownMetricFamily,
)
from prometheus_client.registry import Collector

from sapwood.daemon.engine.engine import Engine, Published
from sapwood.daemon.rpc.gate import Gate
from sapwood.scheduler.disk import DISK_STATES
from sapwood.scheduler.histogram import HistogramView
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.stats import Stats

PREFIX = "sapwood_"
MEMORY_KINDS = (
    "weights", "live", "segments", "snapshots", "workspace", "mlx_cache", "other", "free",
)  # fmt: skip


def registry(engine: Engine, gate: Gate) -> CollectorRegistry:
    """A registry of its own: the process-wide default one is shared by every daemon in tests."""
    made = CollectorRegistry(auto_describe=False)
    made.register(DaemonCollector(engine, gate))
    return made


class DaemonCollector(Collector):
    """All metrics of one daemon. Empty until the model is loaded."""

    def __init__(self, engine: Engine, gate: Gate) -> None:
        self._engine = engine
        self._gate = gate

    def collect(self) -> Iterator[Metric]:
        """Collector.collect: all of it from one moment, nothing before the model is loaded."""
        published = self._engine.published
        if published is None:
            return
        yield from _latencies(published)
        yield from _requests(published.stats, self._gate)
        yield from _tokens(published.stats)
        yield from _speculation(published.stats)
        yield from _tree(published.stats)
        yield from _memory(published)


def _latencies(published: Published) -> Iterator[Metric]:
    stats = published.stats
    yield _histogram(
        "time_to_first_token_seconds", "From arrival to the first token.", stats.time_to_first_token
    )
    yield _histogram(
        "inter_token_latency_seconds",
        "Between two tokens of one reply; tokens of one step share its time.",
        stats.inter_token_latency,
    )
    yield _histogram("request_queue_seconds", "From submission to a slot.", stats.request_queue)
    yield _histogram("request_prefill_seconds", "Prefill to first token.", stats.request_prefill)
    yield _histogram("request_decode_seconds", "First token to last.", stats.request_decode)
    yield _histogram("request_duration_seconds", "From arrival to the end.", stats.request_duration)
    phases = HistogramMetricFamily(
        f"{PREFIX}step_duration_seconds", "Time of one step by phase.", labels=["phase"]
    )
    for phase, view in published.phases.items():
        phases.add_metric([phase], *_buckets(view))
    yield phases


def _requests(stats: Stats, gate: Gate) -> Iterator[Metric]:
    outcomes = {end.value: n + gate.turned_away[end] for end, n in stats.requests.items()}
    yield _counter("requests", "Requests by how they ended.", "outcome", outcomes)
    reasons = {
        reason.name: n + gate.rejected[reason]
        for reason, n in stats.rejected.items()
        if reason.travels
    }
    yield _counter("requests_rejected", "Requests rejected, by why.", "reason", reasons)
    yield _gauge("requests_running", "Requests in prefill or decode.", stats.requests_running)
    waiting = stats.requests_waiting + gate.accounts.waiting
    yield _gauge("requests_waiting", "Requests in the queue, or before it by a quota.", waiting)
    yield _gauge("requests_parked", "Requests whose slot went for a while.", stats.requests_parked)
    # A counter's family in OpenMetrics has no suffix, and would be the gauge's.
    parks = UnknownMetricFamily(f"{PREFIX}requests_parked_total", "How often one was parked.")
    parks.add_metric([], stats.parks)
    yield parks
    yield _histogram("rows_per_step", "Requests in one step.", stats.rows_per_step)
    yield _histogram("tokens_per_step", "Packed tokens of one step.", stats.tokens_per_step)


def _tokens(stats: Stats) -> Iterator[Metric]:
    yield _total("prompt_tokens", "Prompt tokens, cached ones included.", stats.prompt_tokens)
    yield _total("generated_tokens", "Tokens emitted.", stats.generated_tokens)
    yield _total(
        "prefix_cached_tokens", "Prompt tokens found in the tree.", stats.prefix_cached_tokens
    )
    yield _counter(
        "prefix_recomputed_tokens",
        "Prompt tokens computed, by why the tree did not have them.",
        "cause",
        stats.prefix_recomputed_tokens,
    )


def _speculation(stats: Stats) -> Iterator[Metric]:
    yield _total("draft_rounds", "Forwards that verified a draft.", stats.draft_rounds)
    yield _counter(
        "draft_tokens",
        "Drafts verified, by position in their round.",
        "position",
        _by_position(stats.draft_tokens),
    )
    yield _counter(
        "accepted_tokens",
        "Drafts accepted and emitted, by position in their round.",
        "position",
        _by_position(stats.accepted_tokens),
    )
    yield _histogram("draft_depth", "Drafts per round and row.", stats.draft_depth)
    yield _gauge("parked_rows", "Rows whose speculation is parked at depth 0.", stats.parked_rows)


def _tree(stats: Stats) -> Iterator[Metric]:
    yield _gauge("tree_nodes", "Nodes of the prefix tree.", stats.tree_nodes)
    yield _gauge("tree_depth_tokens", "Tokens of its longest path.", stats.tree_depth_tokens)
    stored = GaugeMetricFamily(
        f"{PREFIX}tree_bytes", "K/V that the tree holds.", labels=["tier", "layer"]
    )
    stored.add_metric(["device", "full"], stats.tree_full_bytes)
    stored.add_metric(["device", "sliding"], stats.tree_sliding_bytes)
    for kind, size in stats.disk.bytes.items():
        stored.add_metric(["disk", kind], size)
    yield stored
    yield _gauge(
        "tree_leased_bytes", "Full K/V of nodes in use or pinned.", stats.tree_leased_bytes
    )
    yield _gauge("tree_pinned_bytes", "K/V that pins keep.", stats.tree_pinned_bytes)
    causes: dict[str, int] = {cause: n for cause, n in stats.tree_evictions.items()}
    causes["expired"] = 0  # what expires is no longer kept, and not gone
    yield _counter("tree_evictions", "Nodes evicted, thinned or cleared.", "cause", causes)
    yield _total("tree_splits", "Edges split where a prompt left them.", stats.tree_splits)
    yield _total("tree_merges", "Nodes merged with their only child.", stats.tree_merges)
    paged_in = {"device": stats.page_in_bytes, "disk": stats.disk.read_bytes}
    told = "Stored K/V that slots copied, or that was read from disk."
    yield _counter("page_in_bytes", told, "tier", paged_in)
    paged_out = {"device": stats.page_out_bytes, "disk": stats.disk.written_bytes}
    told = "K/V that the tree took, or that was written to disk."
    yield _counter("page_out_bytes", told, "tier", paged_out)
    state = GaugeMetricFamily(
        f"{PREFIX}disk_state", "1 for what the disk tier is.", labels=["state"]
    )
    for name in DISK_STATES:
        state.add_metric([name], name == stats.disk.state)
    yield state
    told = "Files of the disk tier that were found damaged."
    yield _total("disk_quarantined", told, stats.disk.quarantined)


def _memory(published: Published) -> Iterator[Metric]:
    memory = published.memory
    kinds = GaugeMetricFamily(
        f"{PREFIX}memory_bytes", "What the budget is used for.", labels=["kind"]
    )
    for kind in MEMORY_KINDS:
        kinds.add_metric([kind], getattr(memory, kind))
    yield kinds
    buffers = GaugeMetricFamily(
        f"{PREFIX}memory_buffers", "Buffers of the device that arrays are in.", labels=["kind"]
    )
    for kind in ("weights", "live", "snapshots"):
        buffers.add_metric([kind], getattr(published.stats.buffers, kind))
    yield buffers
    yield _gauge("memory_budget_bytes", "What the daemon allows itself.", memory.budget)
    yield _gauge(
        "memory_unaccounted_bytes",
        "What the device holds more than is accounted for; below 0 where less than is reserved.",
        memory.unaccounted,
    )


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, text, value=value)


def _total(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(PREFIX + name, text, value=value)


def _counter(name: str, text: str, label: str, values: Mapping[Any, int]) -> Metric:
    family = CounterMetricFamily(PREFIX + name, text, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


def _histogram(name: str, text: str, view: HistogramView) -> Metric:
    buckets, total = _buckets(view)
    return HistogramMetricFamily(PREFIX + name, text, buckets=buckets, sum_value=total)


def _buckets(view: HistogramView) -> tuple[list[tuple[str, float]], float]:
    """Prometheus buckets count everything up to their bound."""
    bounds = [*(str(float(bound)) for bound in view.bounds), "+Inf"]
    buckets: list[tuple[str, float]] = []
    below = 0
    for bound, count in zip(bounds, view.counts, strict=True):
        below += count
        buckets.append((bound, below))
    return buckets, view.total


def _by_position(counts: Sequence[int]) -> dict[str, int]:
    """Position 1 to the deepest draft there can be, with or without a drafter."""
    padded = itertools.zip_longest(range(1, Limits().draft_depth_max + 1), counts, fillvalue=0)
    return {str(position): count for position, count in padded}

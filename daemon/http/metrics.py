"""What Prometheus scrapes: one Collector over one immutable account per scrape.

- Reads the engine's Published reference and the gate's count of requests that never reached the
  core; nothing is incremented on any code path for the metrics' sake.
- Names and labels are those of the wire contract; every label value is there from the first scrape.
- Counters move at commit, before the message that tells of them is written.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    UnknownMetricFamily,
)
from prometheus_client.registry import Collector

from sapwood.daemon.engine.account import MEMORY_KINDS
from sapwood.daemon.engine.engine import Engine, Published
from sapwood.daemon.http.exemplars import Exemplars
from sapwood.daemon.http.families import (
    PREFIX,
    buckets,
    counter,
    gauge,
    histogram,
    labelled_counter,
)
from sapwood.daemon.http.process_metrics import ProcessMetrics, process
from sapwood.daemon.rpc.gate import Gate
from sapwood.scheduler.disk import DISK_STATES
from sapwood.scheduler.histogram import HistogramView
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.stats import Stats


def registry(engine: Engine, gate: Gate) -> CollectorRegistry:
    """A registry of its own: the process-wide default one is shared by every daemon in tests."""
    made = CollectorRegistry(auto_describe=False)
    made.register(DaemonCollector(engine, gate))
    made.register(ProcessMetrics())
    return made


class DaemonCollector(Collector):
    """All metrics of one daemon; until the model is loaded, those of process_metrics alone."""

    def __init__(self, engine: Engine, gate: Gate) -> None:
        self._engine = engine
        self._gate = gate
        self._exemplars = Exemplars(engine)
        gate.telemetry.add_sink(self._exemplars.take)

    def collect(self) -> Iterator[Metric]:
        """Collector.collect: all of it from one moment."""
        published = self._engine.published
        yield from process(self._gate)
        if published is None:
            return
        yield from _latencies(published, self._exemplars)
        yield from _requests(published.stats, self._gate)
        yield from _tokens(published.stats)
        yield from _speculation(published.stats)
        yield from _tree(published.stats)
        yield from _memory(published)
        yield from _numerics(published.stats)


def _latencies(published: Published, exemplars: Exemplars) -> Iterator[Metric]:
    stats = published.stats
    texts = {
        "time_to_first_token": "From arrival to the first token.",
        "inter_token_latency": "Between two tokens of one reply; a step's share its time.",
        "request_queue": "From submission to a slot.",
        "request_prefill": "Prefill to first token.",
        "request_decode": "First token to last.",
        "request_duration": "From arrival to the end.",
    }
    for name, text in texts.items():
        view: HistogramView = getattr(stats, name)
        yield histogram(f"{name}_seconds", text, view, exemplars.of(name))
    phases = HistogramMetricFamily(
        f"{PREFIX}step_duration_seconds", "Time of one step by phase.", labels=["phase"]
    )
    for phase, view in published.phases.items():
        phases.add_metric([phase], *buckets(view, {}))
    yield phases


def _requests(stats: Stats, gate: Gate) -> Iterator[Metric]:
    outcomes = {end.value: n + gate.turned_away[end] for end, n in stats.requests.items()}
    yield labelled_counter("requests", "Requests by how they ended.", "outcome", outcomes)
    reasons = {
        reason.name: n + gate.rejected[reason]
        for reason, n in stats.rejected.items()
        if reason.travels
    }
    yield labelled_counter("requests_rejected", "Requests rejected, by why.", "reason", reasons)
    yield gauge("requests_running", "Requests in prefill or decode.", stats.requests_running)
    waiting = stats.requests_waiting + gate.accounts.waiting
    yield gauge("requests_waiting", "Requests in the queue, or before it by a quota.", waiting)
    yield gauge("requests_parked", "Requests whose slot went for a while.", stats.requests_parked)
    # A counter's family in OpenMetrics has no suffix, and would be the gauge's.
    parks = UnknownMetricFamily(f"{PREFIX}requests_parked_total", "How often one was parked.")
    parks.add_metric([], stats.parks)
    yield parks
    yield histogram("rows_per_step", "Requests in one step.", stats.rows_per_step)
    yield histogram("tokens_per_step", "Packed tokens of one step.", stats.tokens_per_step)


def _tokens(stats: Stats) -> Iterator[Metric]:
    yield counter("prompt_tokens", "Prompt tokens, cached ones included.", stats.prompt_tokens)
    yield counter("generated_tokens", "Tokens emitted.", stats.generated_tokens)
    yield counter(
        "prefix_cached_tokens", "Prompt tokens found in the tree.", stats.prefix_cached_tokens
    )
    yield labelled_counter(
        "prefix_recomputed_tokens",
        "Prompt tokens computed, by why the tree did not have them.",
        "cause",
        stats.prefix_recomputed_tokens,
    )


def _speculation(stats: Stats) -> Iterator[Metric]:
    yield counter("draft_rounds", "Forwards that verified a draft.", stats.draft_rounds)
    yield labelled_counter(
        "draft_tokens",
        "Drafts verified, by position in their round.",
        "position",
        _by_position(stats.draft_tokens),
    )
    yield labelled_counter(
        "accepted_tokens",
        "Drafts accepted and emitted, by position in their round.",
        "position",
        _by_position(stats.accepted_tokens),
    )
    yield histogram("draft_depth", "Drafts per round and row.", stats.draft_depth)
    yield gauge("parked_rows", "Rows whose speculation is parked at depth 0.", stats.parked_rows)


def _tree(stats: Stats) -> Iterator[Metric]:
    yield gauge("tree_nodes", "Nodes of the prefix tree.", stats.tree_nodes)
    yield gauge("tree_depth_tokens", "Tokens of its longest path.", stats.tree_depth_tokens)
    stored = GaugeMetricFamily(
        f"{PREFIX}tree_bytes", "K/V that the tree holds.", labels=["tier", "layer"]
    )
    stored.add_metric(["device", "full"], stats.tree_full_bytes)
    stored.add_metric(["device", "sliding"], stats.tree_sliding_bytes)
    for kind, size in stats.disk.bytes.items():
        stored.add_metric(["disk", kind], size)
    yield stored
    yield gauge("tree_leased_bytes", "Full K/V of nodes in use or pinned.", stats.tree_leased_bytes)
    yield gauge("tree_pinned_bytes", "K/V that pins keep.", stats.tree_pinned_bytes)
    causes: dict[str, int] = {cause: n for cause, n in stats.tree_evictions.items()}
    causes["expired"] = 0  # what expires is no longer kept, and not gone
    yield labelled_counter("tree_evictions", "Nodes evicted, thinned or cleared.", "cause", causes)
    yield counter("tree_splits", "Edges split where a prompt left them.", stats.tree_splits)
    yield counter("tree_merges", "Nodes merged with their only child.", stats.tree_merges)
    paged_in = {"device": stats.page_in_bytes, "disk": stats.disk.read_bytes}
    told = "Stored K/V that slots copied, or that was read from disk."
    yield labelled_counter("page_in_bytes", told, "tier", paged_in)
    paged_out = {"device": stats.page_out_bytes, "disk": stats.disk.written_bytes}
    told = "K/V that the tree took, or that was written to disk."
    yield labelled_counter("page_out_bytes", told, "tier", paged_out)
    state = GaugeMetricFamily(
        f"{PREFIX}disk_state", "1 for what the disk tier is.", labels=["state"]
    )
    for name in DISK_STATES:
        state.add_metric([name], name == stats.disk.state)
    yield state
    told = "Files of the disk tier that were found damaged."
    yield counter("disk_quarantined", told, stats.disk.quarantined)


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
    yield gauge("memory_budget_bytes", "What the daemon allows itself.", memory.budget)
    yield gauge(
        "memory_unaccounted_bytes",
        "What the device holds more than is accounted for; below 0 where less than is reserved.",
        memory.unaccounted,
    )


def _numerics(stats: Stats) -> Iterator[Metric]:
    told = "Rounds that were computed once more."
    yield counter("self_check_rounds", told, stats.self_check_rounds)
    kinds = {verdict.value: n for verdict, n in stats.self_check_mismatches.items()}
    told = "Of them those that came out otherwise, within rounding or not."
    yield labelled_counter("self_check_mismatches", told, "kind", kinds)


def _by_position(counts: Sequence[int]) -> dict[str, int]:
    """Position 1 to the deepest that can be pinned, with or without a drafter; it has the rest."""
    last = Limits().draft_tokens_max
    each = [*counts[: last - 1], sum(counts[last - 1 :])]
    padded = itertools.zip_longest(range(1, last + 1), each, fillvalue=0)
    return {str(position): count for position, count in padded}

"""What the core counts as it goes, until it is published as Stats.

- Written by the core alone. Every label comes from a closed set named here or in outcomes.
- Counters move at commit, before the effect that tells of them leaves.
- The prompt counts follow the slices: cached + recomputed == prompt, at every moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sapwood.cache.prefix.ledger import LedgerView
from sapwood.cache.prefix.tree import Tree
from sapwood.scheduler.disk import DiskStats
from sapwood.scheduler.histogram import Histogram
from sapwood.scheduler.outcomes import Outcome
from sapwood.scheduler.plan import StepPlan
from sapwood.scheduler.reasons import Reason
from sapwood.scheduler.replay import MISMATCHES, ReplayVerdict
from sapwood.scheduler.stats import Stats

DIVERGED, EVICTED, THINNED, COLD = "diverged", "evicted", "thinned", "cold"
RECOMPUTE_CAUSES = (DIVERGED, EVICTED, THINNED, COLD)
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
LONG_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
COUNTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


class SequenceCounts(NamedTuple):
    """How many sequences are where."""

    running: int
    waiting: int
    parked: int


class Meters:
    """The counters behind Stats. Written by the core alone."""

    def __init__(self, depth_max: int) -> None:
        self.time_to_first_token = Histogram(LONG_SECONDS)
        self.inter_token_latency = Histogram(SECONDS)
        self.request_queue = Histogram(LONG_SECONDS)
        self.request_prefill = Histogram(LONG_SECONDS)
        self.request_decode = Histogram(LONG_SECONDS)
        self.request_duration = Histogram(LONG_SECONDS)
        self.rows_per_step = Histogram(COUNTS)
        self.tokens_per_step = Histogram(COUNTS)
        self.draft_depth = Histogram(tuple(float(depth) for depth in range(depth_max + 1)))
        self.requests = dict.fromkeys(Outcome, 0)
        self.rejected = dict.fromkeys(Reason, 0)
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.prefix_cached_tokens = 0
        self.prefix_recomputed_tokens = dict.fromkeys(RECOMPUTE_CAUSES, 0)
        self.draft_rounds = 0
        self.draft_tokens = [0] * depth_max
        self.accepted_tokens = [0] * depth_max
        self.parked_rows = 0
        self.parks = 0
        self.page_in_bytes = 0
        self.self_check_rounds = 0
        self.self_check_mismatches = dict.fromkeys(MISMATCHES, 0)

    def count_end(self, outcome: Outcome, reason: Reason | None = None) -> None:
        """One request ended; with `reason` where it has one, which counts where it is rejected."""
        self.requests[outcome] += 1
        if outcome is Outcome.REJECTED:
            assert reason is not None, "rejected without a reason"
            self.rejected[reason] += 1

    def count_restored(self, tokens: int) -> None:
        """So many tokens of admitted prompts come from the tree."""
        self.prompt_tokens += tokens
        self.prefix_cached_tokens += tokens

    def count_computed(self, start: int, end: int, causes: Sequence[tuple[str, int]]) -> None:
        """A slice [start, end); `causes` are (cause, where it ends), ascending."""
        self.prompt_tokens += end - start
        for cause, until in causes:
            tokens = min(end, until) - start
            if tokens > 0:
                self.prefix_recomputed_tokens[cause] += tokens
                start += tokens

    def count_round(self, drafted: int, accepted: int) -> None:
        """`accepted` drafts were accepted and emitted."""
        self.draft_depth.observe(drafted)
        self.draft_rounds += drafted > 0
        for position in range(drafted):
            self.draft_tokens[position] += 1
        for position in range(accepted):
            self.accepted_tokens[position] += 1

    def count_replay(self, verdict: ReplayVerdict) -> None:
        """A round was computed once more, unless there was no memory for it."""
        self.self_check_rounds += verdict is not ReplayVerdict.SKIPPED
        if verdict in self.self_check_mismatches:
            self.self_check_mismatches[verdict] += 1

    def count_step(self, plan: StepPlan, parked_rows: int) -> None:
        """A step without tokens is in no histogram. `parked_rows` is of this step alone."""
        self.parked_rows = parked_rows
        if plan.tokens:
            self.rows_per_step.observe(len(plan.decodes) + len(plan.prefills))
            self.tokens_per_step.observe(plan.tokens)

    def publish(
        self,
        steps: int,
        sequences: SequenceCounts,
        tree: Tree,
        memory: LedgerView,
        segments_bytes: int,
        buffers: LedgerView,
        disk: DiskStats,
    ) -> Stats:
        """All counts of this moment, in one value that nobody changes any more."""
        return Stats(
            steps=steps,
            time_to_first_token=self.time_to_first_token.view(),
            inter_token_latency=self.inter_token_latency.view(),
            request_queue=self.request_queue.view(),
            request_prefill=self.request_prefill.view(),
            request_decode=self.request_decode.view(),
            request_duration=self.request_duration.view(),
            rows_per_step=self.rows_per_step.view(),
            tokens_per_step=self.tokens_per_step.view(),
            draft_depth=self.draft_depth.view(),
            requests=dict(self.requests),
            rejected=dict(self.rejected),
            requests_running=sequences.running,
            requests_waiting=sequences.waiting,
            requests_parked=sequences.parked,
            parks=self.parks,
            prompt_tokens=self.prompt_tokens,
            generated_tokens=self.generated_tokens,
            prefix_cached_tokens=self.prefix_cached_tokens,
            prefix_recomputed_tokens=dict(self.prefix_recomputed_tokens),
            draft_rounds=self.draft_rounds,
            draft_tokens=tuple(self.draft_tokens),
            accepted_tokens=tuple(self.accepted_tokens),
            parked_rows=self.parked_rows,
            tree_nodes=tree.nodes,
            tree_depth_tokens=tree.depth_tokens,
            tree_full_bytes=tree.full_bytes,
            tree_sliding_bytes=tree.sliding_bytes,
            tree_leased_bytes=tree.leased_bytes,
            tree_pinned_bytes=tree.pinned.bytes,
            tree_evictions=tree.evictions,
            tree_splits=tree.splits,
            tree_merges=tree.merges,
            page_in_bytes=self.page_in_bytes,
            page_out_bytes=tree.taken_bytes,
            memory=memory,
            segments_bytes=segments_bytes,
            self_check_rounds=self.self_check_rounds,
            self_check_mismatches=dict(self.self_check_mismatches),
            buffers=buffers,
            disk=disk,
        )

"""What the core has counted, published whole once per step as one frozen value.

- `generated`, `draft` and `accepted` count exactly what the requests' usage counts.
- A histogram nobody touched since the last step is published again as it is, so that a step
  copies a handful of short tuples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sapwood.cache.prefix.ledger import LedgerView
from sapwood.cache.prefix.node import EvictionCause
from sapwood.scheduler.disk import DiskStats
from sapwood.scheduler.histogram import HistogramView
from sapwood.scheduler.outcomes import Outcome
from sapwood.scheduler.reasons import Reason
from sapwood.scheduler.replay import ReplayVerdict


@dataclass(frozen=True, slots=True)
class Stats:
    """One moment of the core. Times in seconds; per-position tuples begin at draft position 1."""

    steps: int
    time_to_first_token: HistogramView
    inter_token_latency: HistogramView
    request_queue: HistogramView
    request_prefill: HistogramView
    request_decode: HistogramView
    request_duration: HistogramView
    rows_per_step: HistogramView
    tokens_per_step: HistogramView
    draft_depth: HistogramView
    requests: Mapping[Outcome, int]
    rejected: Mapping[Reason, int]  # their sum is what `requests` says of REJECTED
    requests_running: int
    requests_waiting: int
    requests_parked: int
    parks: int  # how often one was parked
    prompt_tokens: int
    generated_tokens: int
    prefix_cached_tokens: int
    prefix_recomputed_tokens: Mapping[str, int]  # by cause
    draft_rounds: int
    draft_tokens: tuple[int, ...]
    accepted_tokens: tuple[int, ...]
    parked_rows: int
    tree_nodes: int
    tree_depth_tokens: int
    tree_full_bytes: int
    tree_sliding_bytes: int
    tree_leased_bytes: int
    tree_pinned_bytes: int
    tree_evictions: Mapping[EvictionCause, int]
    tree_splits: int
    tree_merges: int
    page_in_bytes: int  # of stored K/V that slots copied, ever
    page_out_bytes: int  # of K/V that the tree took, ever
    memory: LedgerView
    segments_bytes: int  # of its snapshots: full K/V that slots read where it lies
    disk: DiskStats
    self_check_rounds: int  # that were computed once more
    self_check_mismatches: Mapping[ReplayVerdict, int]
    buffers: LedgerView  # the device's, counted as memory is; its budget is ModelFacts.buffers_max

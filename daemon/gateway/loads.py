"""What a worker tells of its load, from the core's published counts.

- `token_usage` is the share of the memory beside the weights that live K/V and leased snapshots
  take: what no eviction gives back. Tokens are not counted: they cost differently by layer.
- A rate is over the time since it was last asked for, by whoever keeps this one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from smg_grpc_proto import vllm_engine_pb2 as vllm
from smg_grpc_proto.generated import common_pb2 as common

from sapwood.scheduler.stats import Stats


class Load(NamedTuple):
    """One moment of the engine. Shares are in [0, 1]."""

    running: int
    waiting: int
    token_usage: float
    tokens_per_s: float
    hit_rate: float
    accept_rate: float | None  # None: nothing was drafted


class LoadMeter:
    """Counts of one asker: makes rates of totals."""

    def __init__(self, slots_max: int) -> None:
        self._slots_max = slots_max
        self._tokens, self._at = 0, 0.0
        self._per_s = 0.0

    def read(self, stats: Stats, now: float) -> Load:
        """`now`: any clock that does not go back, in seconds."""
        if self._at and now > self._at:
            self._per_s = (stats.generated_tokens - self._tokens) / (now - self._at)
        self._tokens, self._at = stats.generated_tokens, now
        memory = stats.memory
        room = max(1, memory.budget - memory.weights)
        drafted, accepted = sum(stats.draft_tokens), sum(stats.accepted_tokens)
        return Load(
            running=stats.requests_running,
            waiting=stats.requests_waiting,
            token_usage=min(1.0, (memory.live + stats.tree_leased_bytes) / room),
            tokens_per_s=self._per_s,
            hit_rate=stats.prefix_cached_tokens / max(1, stats.prompt_tokens),
            accept_rate=accepted / drafted if drafted else None,
        )

    def record(self, load: Load, sample: int, load_only: bool) -> Any:
        """As the stream of events carries it."""
        record = common.EngineLoad(
            running_requests=load.running,
            waiting_requests=load.waiting,
            token_usage=load.token_usage,
            gen_throughput=load.tokens_per_s,
            max_running_requests=self._slots_max,
            sample=sample,
            load_only=load_only,
            cache_hit_rate=load.hit_rate,
        )
        if load.accept_rate is not None:
            record.speculative.accept_rate = load.accept_rate
        return record

    def scheduler_load(self, load: Load) -> Any:
        """As GetLoads answers."""
        return vllm.SchedulerLoad(
            num_running_reqs=load.running,
            num_waiting_reqs=load.waiting,
            num_total_reqs=load.running + load.waiting,
            token_usage=load.token_usage,
            gen_throughput=load.tokens_per_s,
            cache_hit_rate=load.hit_rate,
            utilization=min(1.0, load.running / self._slots_max),
            max_running_requests=self._slots_max,
        )

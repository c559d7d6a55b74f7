"""The whole budget as operators see it: the core's ledger, and what the core need not know of.

- The kinds sum to the budget, at every moment; none is negative.
- segments: full K/V in the tree that running requests read where it lies. snapshots: the rest.
- mlx_cache: what MLX keeps of freed memory. It lies in room that nobody has reserved.
- other: what the process takes beside arrays, where the budget was derived from a device whose
  memory is the process's as well. It is taken off before the core's ledger begins.
"""

from __future__ import annotations

from dataclasses import dataclass

from sapwood.scheduler.stats import Stats

# The kinds that sum to the budget, in the order in which they are told.
MEMORY_KINDS = (
    "weights", "live", "segments", "snapshots", "workspace", "mlx_cache", "other", "free",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """What the budget is used for, in bytes.

    unaccounted: what arrays hold more than is reserved for them; below 0 where less.
    """

    budget: int
    weights: int
    live: int
    segments: int
    snapshots: int
    workspace: int
    mlx_cache: int
    other: int
    free: int
    unaccounted: int


def memory_use(stats: Stats, active: int, cached: int, other: int) -> MemoryUse:
    """active, cached: bytes that arrays hold, and that MLX keeps for reuse beside them."""
    ledger, segments = stats.memory, stats.segments_bytes
    # More than is free is kept only while a step is under way, within what is reserved for it.
    kept = min(cached, ledger.free)
    return MemoryUse(
        budget=ledger.budget + other,
        weights=ledger.weights,
        live=ledger.live,
        segments=segments,
        snapshots=ledger.snapshots - segments,
        workspace=ledger.workspace,
        mlx_cache=kept,
        other=other,
        free=ledger.free - kept,
        unaccounted=active - (ledger.budget - ledger.free),
    )

"""The production tree under a budget, driven as the scheduler drives it for one sequence at a time.

- match, lease, hit; slices of the prompt, the last one a turn's end; the reply, a turn's end as
  well; release. Time is a step more for each of them.
- Before anything is stored the tree evicts what is missing for it. What does not fit even then is
  not stored, and nothing behind it.
- What a prompt repeats because its window was thinned is computed, and stored again, like new.
"""

from __future__ import annotations

from array import array

from bench.replay.payload import WeightlessPayload
from bench.replay.trace import KVShape, TraceRequest
from sapwood.cache.geometry import ring_tokens
from sapwood.cache.prefix.describe import EdgeView
from sapwood.cache.prefix.node import Lease
from sapwood.cache.prefix.tree import Tree
from sapwood.scheduler.limits import Limits

_ROOT = b"trace"


class ProductionTree:
    """May hold: full K/V of edges, and of each edge the sliding K/V of its newest part."""

    def __init__(self, shape: KVShape, budget_bytes: int, limits: Limits | None = None) -> None:
        limits = limits or Limits()
        self._shape, self._budget_bytes = shape, budget_bytes
        self._slice_tokens = limits.prefill_tokens_max
        self._ring_tokens = ring_tokens(shape.window, limits.draft_depth_max + 1)
        self._now = 0
        self._tree = Tree(shape.window, limits.nodes_max(budget_bytes))

    @property
    def held_bytes(self) -> int:
        return self._tree.bytes

    def edges(self) -> list[EdgeView]:
        """All there are, parents first: what a router is told of."""
        return self._tree.outline(_ROOT)

    def serve(self, request: TraceRequest) -> int:
        found = self._tree.match(_ROOT, request.prompt).tokens
        lease = self._tree.lease(_ROOT, request.prompt, found, self._tick())
        if found:
            self._tree.hit(lease)
        self._store(lease, request)
        self._tree.release(lease, self._tick())
        return found

    def _store(self, lease: Lease, request: TraceRequest) -> None:
        """The prompt in slices, with all of their sliding K/V; of the reply what a ring retains."""
        prompt_tokens = len(request.prompt)
        while lease.end < prompt_tokens:
            end = min(lease.end + self._slice_tokens, prompt_tokens)
            if not self._extend(lease, request.prompt, end, lease.end, end == prompt_tokens):
                return
        stored = request.stored
        if len(stored) > prompt_tokens:
            ring_start = max(prompt_tokens, len(stored) - self._ring_tokens)
            self._extend(lease, stored, len(stored), ring_start, turn_end=True)

    def _extend(
        self, lease: Lease, tokens: array[int], end: int, sliding_start: int, turn_end: bool
    ) -> bool:
        """Whether [lease.end, end) found room."""
        payload = WeightlessPayload(self._shape, lease.end, end, sliding_start)
        wanted = payload.full_bytes + payload.sliding_bytes
        short = self._tree.bytes + wanted - self._budget_bytes
        if short > 0 and self._tree.evict(short, self._tick()) < short:
            return False
        self._tree.extend(lease, tokens, payload, self._tick(), turn_end=turn_end)
        return True

    def _tick(self) -> int:
        self._now += 1
        return self._now

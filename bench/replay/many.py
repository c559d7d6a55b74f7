"""Many daemons behind one router, each with the production tree: who computes how much. Pure.

- A group is one trace, a team or a program: its requests come one after another, the next one when
  the one before is answered. All groups are there from the beginning, and have nothing in common
  but, where it is said, the tokens that every prompt begins with.
- A worker's work are the prompt tokens that it computes and its replies' tokens, each as much as
  REPLY_TOKEN_WORK of those. Its requests share it equally. There is no other clock.
- A request is looked up and stored when it arrives; what that changed the router hears at once.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random

from bench.replay.kinds import TRACE_KINDS
from bench.replay.ours import ProductionTree
from bench.replay.routing import ROUTERS, Router
from bench.replay.trace import TRACE_SHAPE, TraceRequest
from sapwood.daemon.gateway.blocks import BlockIndex

# What a device takes for a token of a reply among others' ÷ for one of a prompt: assumed.
REPLY_TOKEN_WORK = 4
WORKER_BUDGET_BYTES = 20 << 30
_IDS_OF_A_GROUP = 1 << 22


@dataclass(frozen=True, slots=True)
class TraceGroup:
    """Its kind, its key, and its requests in order."""

    kind: str
    key: int
    requests: Sequence[TraceRequest]


@dataclass(frozen=True, slots=True)
class FleetRun:
    """computed, asked: prompt tokens by kind. work: by worker."""

    computed: Mapping[str, int]
    asked: Mapping[str, int]
    work: Sequence[float]

    @property
    def share(self) -> float:
        """Of all prompt tokens, that were computed."""
        return sum(self.computed.values()) / sum(self.asked.values())

    def share_of(self, kind: str) -> float:
        return self.computed[kind] / self.asked[kind]

    @property
    def imbalance(self) -> float:
        """The busiest worker's work by the mean."""
        return max(self.work) * len(self.work) / sum(self.work)


def groups_of(workers: int, seed: int, scale: float, common_tokens: int) -> list[TraceGroup]:
    """One of each kind for each worker, in a drawn order."""
    kinds = [kind for _ in range(workers) for kind in TRACE_KINDS]
    Random(seed).shuffle(kinds)
    common = array("i", range(1, common_tokens + 1))
    made = []
    for key, kind in enumerate(kinds):
        trace = TRACE_KINDS[kind](seed + 1000 * key, scale)
        first = _IDS_OF_A_GROUP * (key + 1)
        made.append(TraceGroup(kind, key, [_moved(request, first, common) for request in trace]))
    return made


def _moved(request: TraceRequest, first: int, common: array[int]) -> TraceRequest:
    prompt, reply = (
        array("i", [first + id for id in ids]) for ids in (request.prompt, request.reply)
    )
    system = request.system_tokens + len(common)
    return TraceRequest(common + prompt, reply, system, request.from_user)


class _Worker:
    """Requests that run share it equally: its own clock says how much each of them has had."""

    def __init__(self, budget_bytes: int) -> None:
        self.tree = ProductionTree(TRACE_SHAPE, budget_bytes)
        self.index = BlockIndex(TRACE_SHAPE.window)
        self.running: list[tuple[float, int]] = []  # its clock at the end, and whose
        self.work = 0.0
        self._had = self._at = 0.0

    def begin(self, now: float, work: float, group: int) -> None:
        self._advance(now)
        self.work += work
        heappush(self.running, (self._had + work, group))

    def end(self, now: float) -> int:
        """Whose request that is, the first to end."""
        self._advance(now)
        return heappop(self.running)[1]

    @property
    def ends_at(self) -> float:
        if not self.running:
            return float("inf")
        return self._at + (self.running[0][0] - self._had) * len(self.running)

    def _advance(self, now: float) -> None:
        if self.running:
            self._had += (now - self._at) / len(self.running)
        self._at = now


def simulate(
    router: Router,
    groups: Sequence[TraceGroup],
    workers: int,
    budget_bytes: int = WORKER_BUDGET_BYTES,
) -> FleetRun:
    """All groups' requests, to the end."""
    all_workers = [_Worker(budget_bytes) for _ in range(workers)]
    computed, asked = (dict.fromkeys(TRACE_KINDS, 0) for _ in range(2))
    left = [iter(group.requests) for group in groups]

    def ask(at: int, now: float) -> None:
        request = next(left[at], None)
        if request is None:
            return
        group, prompt_tokens = groups[at], len(request.prompt)
        chosen = router.choose(group.key, request.prompt, [len(w.running) for w in all_workers])
        worker = all_workers[chosen]
        missing = prompt_tokens - worker.tree.serve(request)
        if router.listens:
            router.hear(chosen, worker.index.update(worker.tree.edges()))
        computed[group.kind] += missing
        asked[group.kind] += prompt_tokens
        worker.begin(now, missing + REPLY_TOKEN_WORK * len(request.reply), at)

    now = 0.0
    for at in range(len(groups)):
        ask(at, now)
    while (first := min(all_workers, key=lambda worker: worker.ends_at)).running:
        now = first.ends_at
        ask(first.end(now), now)
    return FleetRun(computed, asked, [worker.work for worker in all_workers])


def router_named(name: str, workers: int, seed: int) -> Router:
    return ROUTERS[name](workers, Random(seed))

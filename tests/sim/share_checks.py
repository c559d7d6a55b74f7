"""What principals hold of the slots after every plan (L4), where memory holds nobody up.

- Shares are poured by another way than the product's, from who lives and waits.
- The core is asked who is who, who waits for a prefix of somebody's, how often one was parked, and
  by how much slots are tilted because rows of one take more time than those of another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from sapwood.scheduler.core.core import Core
from sapwood.scheduler.core.line import line_of
from sapwood.scheduler.core.sequence import Sequence
from sapwood.scheduler.core.waiting import _still_awaits
from sapwood.scheduler.events import Priority
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.plan import StepPlan

IDLE_PLANS_MAX = 8  # it takes some to see who waits for a prefix of somebody's


class ShareChecks:
    """Over the plans of one core with plenty of memory."""

    def __init__(self, core: Core, limits: Limits) -> None:
        self._core, self._roster, self._limits = core, core._roster, limits
        self._lacking: Counter[str] = Counter()  # plans in a row
        self._passed: Counter[tuple[str, Priority]] = Counter()
        self._seen: dict[int, Sequence] = {}  # who lived after the last plan
        self._idle = 0  # plans in a row that left a slot free while somebody waited

    def planned(self, plan: StepPlan | None) -> None:
        """Nobody is without a whole slot of its share for long, and no line is passed for ever.

        Behind who was overtaken too often nobody is looked at, whatever that one waits for.
        """
        live = list(self._roster.live.values())
        most = self._limits.overtaken_max
        ended = {line_of(s) for s in self._roster.waiting if s.overtaken >= most}
        # Forks that stand aside are in no line.
        lines = self._roster.waiting.lines
        standing = [s for line in lines for s in line.sequences.values()]
        queue = [s for s in standing if line_of(s) not in ended]
        waiting = [s for s in queue if self._could_come(s)]
        lacking = self._whole_slots_due(live, waiting)
        self._lacking = Counter({name: self._lacking[name] + 1 for name in lacking})
        plans = max(self._lacking.values(), default=0)
        assert plans <= self._limits.slots_max + 1, f"L4: {self._lacking} plans without a slot"
        self._check_passed(waiting)
        self._seen = dict(self._roster.live)
        free = len(live) < self._limits.slots_max
        idle = plan is not None and not plan.releases and free and bool(waiting)
        self._idle = self._idle + 1 if idle else 0
        assert self._idle <= IDLE_PLANS_MAX, f"L4: a slot is free, and {waiting[0].tell()}"

    def _could_come(self, sequence: Sequence) -> bool:
        free = sequence.lease is None and sequence.forced < self._limits.parks_max
        return free and not _still_awaits(sequence)

    def _whole_slots_due(self, live: list[Sequence], waiting: list[Sequence]) -> list[str]:
        """Who is entitled to a slot more, while somebody has more than its share to give up."""
        rows = Counter(s.request.principal for s in live)
        lines = self._roster.waiting.lines
        everybody = [*live, *(s for line in lines for s in line.sequences.values())]
        streams = Counter(s.request.principal for s in everybody)
        if len(streams) < 2:
            return []
        weights = {s.request.principal: s.request.weight for s in everybody}
        tilts = self._core._fairness._tilts
        tilted = {name: weight * tilts.get(name, 1.0) for name, weight in weights.items()}
        shares = water(streams, tilted, self._limits.slots_max)
        oldest = min((s.rank for s in live), default=0)
        spare = [s for s in live if s.rank != oldest and s.forced + 1 < self._limits.parks_max]
        if not any(rows[s.request.principal] > shares[s.request.principal] + 0.2 for s in spare):
            return []
        names = dict.fromkeys(s.request.principal for s in waiting)
        return [name for name in names if rows[name] + 1 <= shares[name] - 1e-6]

    def _check_passed(self, waiting: list[Sequence]) -> None:
        lines = {(s.request.principal, s.request.priority) for s in waiting}
        new = [s for id, s in self._roster.live.items() if id not in self._seen]
        for line in list(self._passed):
            if line not in lines:
                del self._passed[line]
        for sequence in new:
            request = sequence.request
            self._passed.pop((request.principal, request.priority), None)
            for principal, priority in lines:
                if principal == request.principal and priority > request.priority:
                    self._passed[principal, priority] += 1
        most = max(self._passed.values(), default=0)
        most_may = self._limits.passed_max + self._limits.slots_max
        assert most <= most_may, f"L4: {self._passed} passed"


def water(streams: Mapping[str, float], weights: Mapping[str, float], room: float) -> Counter[str]:
    """Max-min shares by bisection of the level: another way than the product's."""
    low, high = 0.0, room / min(weights.values())
    for _ in range(100):
        level = (low + high) / 2
        poured = sum(min(streams[name], level * weights[name]) for name in streams)
        low, high = (low, level) if poured > room else (level, high)
    return Counter({name: min(streams[name], low * weights[name]) for name in streams})

"""What was measured, in absolute values, and the ratios and verdicts drawn from it.

- A row is one contestant's measure at one number of clients: a value for each alternation.
- Figures compare rows alternation by alternation; targets judge the worse quartile.
- Pure: no clock, no device, no file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.measure import Figure, Goal, Side, Spread, at_least, at_most

WORSE = "worse quartile"


@dataclass(frozen=True, slots=True)
class MeasuredRow:
    """details: counts from all alternations together. disturbed: how many alternations were."""

    contestant: str
    measure: str
    unit: str
    clients: int
    values: tuple[float, ...]
    details: Mapping[str, float] = field(default_factory=dict)
    disturbed: int = 0

    def as_json(self) -> dict[str, Any]:
        spread = asdict(Spread.of(self.values))
        return {name: getattr(self, name) for name in self.__slots__} | {"spread": spread}

    @property
    def side(self) -> Side:
        return Side(self.contestant, self.unit, self.values)


class PairRows:
    """Those of one pair, found by contestant, measure and number of clients."""

    def __init__(self, rows: Iterable[MeasuredRow]) -> None:
        self._rows = {(r.contestant, r.measure, r.clients): r for r in rows}

    def find(self, contestant: str, measure: str, clients: int) -> MeasuredRow | None:
        return self._rows.get((contestant, measure, clients))

    def best(self, contestants: Sequence[str], measure: str, clients: int) -> MeasuredRow | None:
        """The most that any of them reached, alternation by alternation."""
        found = [self.find(name, measure, clients) for name in contestants]
        rows = [row for row in found if row is not None]
        if not rows:
            return None
        values = tuple(map(max, zip(*(r.values for r in rows), strict=True)))
        medians = {row.contestant: Spread.of(row.values).median for row in rows}
        name = "best peer"
        shares = {f"median_of_{peer}": median for peer, median in medians.items()}
        disturbed = max(row.disturbed for row in rows)
        return MeasuredRow(name, measure, rows[0].unit, clients, values, shares, disturbed)


def ratio(
    name: str, title: str, ours: MeasuredRow | None, peer: MeasuredRow | None, goal: Goal | None
) -> list[Figure]:
    """One figure, or none where one of the two was not measured."""
    if ours is None or peer is None:
        return []
    details = {**ours.details, **peer.details} if peer.contestant == "best peer" else ours.details
    disturbed = bool(ours.disturbed or peer.disturbed)
    return [Figure(name, title, ours.side, peer.side, goal, details, disturbed)]


def least(bound: float | None) -> Goal | None:
    return None if bound is None else at_least(bound, WORSE)


def most(bound: float | None) -> Goal | None:
    return None if bound is None else at_most(bound, WORSE)


def company(clients: int) -> str:
    return "1 client" if clients == 1 else f"{clients} clients"

"""Which pool row each slot has: one decision for all layers whose pools have the same shape.

- A slot lies in the pool of the smallest capacity class that holds it. A class has as many rows as
  its highest taken one asks for: live K/V is budgeted in bytes, so pools follow the sequences.
- A class that has as many rows as one array may have begins another beside itself, of rows that are
  a token longer: classes are told apart by their capacity.
- A freed row is taken again first. `pack` closes holes once enough rows are spare: it copies the
  class's pool, so one sequence that leaves as another comes must not pay for it.
- Moves are values: every layer replays the same list, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """Row `row` of the pool of capacity `capacity`."""

    capacity: int
    row: int


@dataclass(frozen=True, slots=True)
class Move:
    """A slot's way to `new`; old None: it comes with nothing."""

    old: Place | None
    new: Place


class Placement:
    """Pool rows of all slots.

    capacity_for(tokens): the class that holds so many. tokens_max: of all rows of a class together.
    """

    def __init__(self, capacity_for: Callable[[int], int], tokens_max: int = 1 << 62) -> None:
        self.capacity_for, self.tokens_max = capacity_for, tokens_max
        self.places: dict[int, Place] = {}
        self._taken: dict[int, list[int | None]] = {}  # capacity -> the slot in each row

    def rows(self, capacity: int) -> int:
        """Rows that the class's pool must have; 0 = nobody needs it."""
        return len(self._taken.get(capacity, ()))

    def reserve(self, wants: Iterable[tuple[int, int]]) -> list[Move]:
        """Give every (slot, tokens) a place; what has one that large stays where it is."""
        moves = [move for slot, tokens in wants if (move := self._move(slot, tokens)) is not None]
        self._drop_empty()
        return moves

    def free(self, slot: int) -> None:
        """Let the next one have the slot's row; no other slot moves. Nothing where it has none."""
        place = self.places.pop(slot, None)
        if place is not None:
            self._taken[place.capacity][place.row] = None
            self._drop_empty()

    def pack(self) -> dict[int, list[int]]:
        """Close the holes of classes with many: capacity -> the old rows in their new order."""
        orders = {}
        for capacity, taken in self._taken.items():
            live = sorted(slot for slot in taken if slot is not None)
            if len(taken) - len(live) <= max(1, len(live) // 4):
                continue
            orders[capacity] = [self.places[slot].row for slot in live]
            self._taken[capacity] = list(live)
            self.places |= {slot: Place(capacity, row) for row, slot in enumerate(live)}
        return orders

    def _move(self, slot: int, tokens: int) -> Move | None:
        old, capacity = self.places.get(slot), self.capacity_for(tokens)
        if old is not None and old.capacity >= capacity:
            return None
        while self._is_full(capacity):
            capacity += 1
        taken = self._taken.setdefault(capacity, [])
        if None not in taken:
            taken.append(None)
        row = taken.index(None)
        taken[row] = slot
        self.places[slot] = Place(capacity, row)
        if old is not None:
            self._taken[old.capacity][old.row] = None
        return Move(old, self.places[slot])

    def _is_full(self, capacity: int) -> bool:
        taken = self._taken.get(capacity, ())
        return None not in taken and len(taken) >= max(1, self.tokens_max // capacity)

    def _drop_empty(self) -> None:
        """Forget classes without owners, between calls: pools know rows as they were before."""
        for capacity, taken in list(self._taken.items()):
            if all(slot is None for slot in taken):
                del self._taken[capacity]

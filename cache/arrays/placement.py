"""Which pool row each slot has: one decision for all layers whose pools have the same shape.

- A slot lies in the pool of the smallest capacity class that holds it. A class has as many rows as
  its highest taken one asks for: live K/V is budgeted in bytes, so pools follow the sequences.
- A class that has as many rows as one array may have begins another beside itself, of rows that are
  a token longer: classes are told apart by their capacity.
- A freed row is taken again first. `pack` closes holes once enough rows are spare: it copies the
  class's pool, so one sequence that leaves as another comes must not pay for it.
- Moves are values: every layer replays the same list, in order.
- A row begins at its slot's *base*, position 0 unless what lies before is held elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """Row `row` of the pool of capacity `capacity`. base: the first position it may hold."""

    capacity: int
    row: int
    base: int = 0


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
        self._bases: dict[int, int] = {}
        self._taken: dict[int, list[int | None]] = {}  # capacity -> the slot in each row

    def rows(self, capacity: int) -> int:
        """Rows that the class's pool must have; 0 = nobody needs it."""
        return len(self._taken.get(capacity, ()))

    def base(self, slot: int) -> int:
        """The position of the first token that the slot's row may hold."""
        return self._bases.get(slot, 0)

    def begin_at(self, slot: int, base: int) -> None:
        """The slot's row begins at `base`. It has none yet."""
        assert slot not in self.places, f"slot {slot} has a row"
        self._bases[slot] = base

    def reserve(self, wants: Iterable[tuple[int, int]]) -> list[Move]:
        """Give every (slot, tokens) a place for [base, tokens); one that is large enough stays."""
        moves = [move for slot, tokens in wants if (move := self._move(slot, tokens)) is not None]
        self._drop_empty()
        return moves

    def free(self, slot: int) -> None:
        """Let the next one have the slot's row; no other slot moves. Nothing where it has none."""
        place = self.places.pop(slot, None)
        self._bases.pop(slot, None)
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
            self.places |= {slot: self._at(slot, capacity, row) for row, slot in enumerate(live)}
        return orders

    def _move(self, slot: int, tokens: int) -> Move | None:
        old, capacity = self.places.get(slot), self.capacity_for(tokens - self.base(slot))
        if old is not None and old.capacity >= capacity:
            return None
        while self._is_full(capacity):
            capacity += 1
        taken = self._taken.setdefault(capacity, [])
        if None not in taken:
            taken.append(None)
        row = taken.index(None)
        taken[row] = slot
        self.places[slot] = self._at(slot, capacity, row)
        if old is not None:
            self._taken[old.capacity][old.row] = None
        return Move(old, self.places[slot])

    def _at(self, slot: int, capacity: int, row: int) -> Place:
        return Place(capacity, row, self.base(slot))

    def _is_full(self, capacity: int) -> bool:
        taken = self._taken.get(capacity, ())
        return None not in taken and len(taken) >= max(1, self.tokens_max // capacity)

    def _drop_empty(self) -> None:
        """Forget classes without owners, between calls: pools know rows as they were before."""
        for capacity, taken in list(self._taken.items()):
            if all(slot is None for slot in taken):
                del self._taken[capacity]

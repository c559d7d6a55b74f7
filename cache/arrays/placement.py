"""Which pool row each slot has: one decision for all layers whose pools have the same shape.

- A slot lies in the pool of the smallest capacity class that holds it. A class has as many rows as
  its highest taken one asks for: live K/V is budgeted in bytes, so pools follow the sequences.
- A class that has as many rows as one array may have begins another beside itself, of rows that are
  a token longer: classes are told apart by their capacity.
- A freed row is a hole until another takes it, the first one first. A class goes with its last
  slot. `pack` closes all holes: it copies pools, so whoever owns the slots says when that pays.
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
        return [move for slot, tokens in wants if (move := self._move(slot, tokens)) is not None]

    def free(self, slot: int) -> None:
        """Let the next one have the slot's row; no other slot moves. Nothing where it has none."""
        place = self.places.pop(slot, None)
        self._bases.pop(slot, None)
        if place is not None:
            self._vacate(place)

    def pack(self) -> dict[int, list[int]]:
        """Close all holes: of each class that has any, the old rows in their new order."""
        orders = {}
        for capacity, taken in self._taken.items():
            live = sorted(slot for slot in taken if slot is not None)
            if len(taken) == len(live):
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
            self._vacate(old)
        return Move(old, self.places[slot])

    def _vacate(self, place: Place) -> None:
        """A row has no owner; a class without any is gone, and begins anew with the next one."""
        taken = self._taken[place.capacity]
        taken[place.row] = None
        if all(slot is None for slot in taken):
            del self._taken[place.capacity]

    def _at(self, slot: int, capacity: int, row: int) -> Place:
        return Place(capacity, row, self.base(slot))

    def _is_full(self, capacity: int) -> bool:
        taken = self._taken.get(capacity, ())
        return None not in taken and len(taken) >= max(1, self.tokens_max // capacity)

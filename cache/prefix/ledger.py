"""Every byte of the device against one budget, or every buffer against its count of them.

- free + weights + live + snapshots + workspace == budget at every boundary, and none is negative.
- A number has one owner: the tree knows what snapshots weigh and the core tells the ledger by
  adjust(); live and workspace are reserved before the device is asked, and given back after.
- What does not fit raises and changes nothing: evict or wait, then try again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ReservedKind = Literal["live", "snapshots", "workspace"]
KINDS: tuple[ReservedKind, ...] = ("live", "snapshots", "workspace")


class OutOfMemory(Exception):
    """The budget does not hold `wanted` bytes more; `free` is what is left."""

    def __init__(self, kind: str, wanted: int, free: int) -> None:
        super().__init__(f"{kind} wants {wanted} bytes, {free} are free")
        self.wanted = wanted
        self.free = free


@dataclass(frozen=True, slots=True)
class LedgerView:
    """The account at one moment, in bytes."""

    budget: int
    weights: int
    live: int
    snapshots: int
    workspace: int
    free: int


class Ledger:
    """The account of one device. Single-threaded, like all of the core."""

    def __init__(self, budget_bytes: int, weights_bytes: int) -> None:
        """Raises OutOfMemory where the weights alone are more than the budget.

        Where buffers are counted, all that is called bytes is a number of buffers.
        """
        assert weights_bytes >= 0, f"weights of {weights_bytes} bytes"
        if weights_bytes > budget_bytes:
            raise OutOfMemory("weights", weights_bytes, budget_bytes)
        self.budget_bytes = budget_bytes
        self.weights_bytes = weights_bytes
        self._held: dict[ReservedKind, int] = dict.fromkeys(KINDS, 0)
        self._free = budget_bytes - weights_bytes

    @property
    def free(self) -> int:
        """Bytes that nobody has reserved."""
        return self._free

    def held(self, kind: ReservedKind) -> int:
        """Bytes reserved for `kind`."""
        return self._held[kind]

    def reserve(self, kind: ReservedKind, wanted: int) -> None:
        """Raises OutOfMemory, with nothing changed, where `wanted` bytes are not free."""
        assert wanted >= 0, f"reserving {wanted} bytes for {kind}"
        if wanted > self._free:
            raise OutOfMemory(kind, wanted, self._free)
        self._held[kind] += wanted
        self._free -= wanted

    def give_back(self, kind: ReservedKind, returned: int) -> None:
        """`returned` bytes of `kind` are free again; more than are held is our own mistake."""
        held = self._held[kind]
        assert 0 <= returned <= held, f"giving back {returned} of {held} bytes of {kind}"
        self._held[kind] -= returned
        self._free += returned

    def adjust(self, kind: ReservedKind, delta: int) -> None:
        """Follow an owner's count up (may raise OutOfMemory, like reserve) or down."""
        if delta >= 0:
            self.reserve(kind, delta)
        else:
            self.give_back(kind, -delta)

    def view(self) -> LedgerView:
        """The account as it is now; later changes do not touch the view."""
        return LedgerView(self.budget_bytes, self.weights_bytes, **self._held, free=self._free)

    def check_empty(self) -> None:
        """M3: nothing but the weights is held."""
        assert not any(self._held.values()), f"M3: {self._held}"

    def check(self) -> None:
        """M1."""
        assert min(self._free, *self._held.values()) >= 0, f"M1: negative in {self.view()}"
        total = self._free + self.weights_bytes + sum(self._held.values())
        assert total == self.budget_bytes, f"M1: {total} of {self.view()}"

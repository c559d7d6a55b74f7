"""Prefixes that are kept until somebody unpins them or their time is over.

- A pin is computed by a sequence that draws nothing: it waits, is read in slices, may be parked and
  cancelled like any other. When all of its prompt is stored the pin takes it over.
- What pins keep is bounded (`pins_max` of SnapshotRoom): by a share of what lies beside weights,
  and so that whoever was let in still fits, were they alone (L5). Who comes is measured by that.
- What pins keep grows when a prompt parts from it in the middle of an edge: a cut begins a page and
  a buffer. Each pin brings room for some cuts; what would cut beyond that is not stored.
- A principal's own bound (`bytes_max`) counts each of its pins whole, whatever others keep of it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from sapwood.cache.prefix.leases import PIN_MARGIN_TOKENS, kept_tokens, pin_bytes
from sapwood.cache.prefix.ledger import Ledger
from sapwood.cache.prefix.node import Lease, Room
from sapwood.cache.prefix.radix import common, pack
from sapwood.cache.prefix.tree import Tree
from sapwood.scheduler.core.demand import Demand, slots_bytes
from sapwood.scheduler.core.sequence import Sequence
from sapwood.scheduler.core.snapshot_room import SnapshotRoom
from sapwood.scheduler.events import Clear, Cleared, PinTerms, PinView, Request
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.model_facts import ModelFacts
from sapwood.scheduler.reasons import Reason

CUTS_SPARE = 16  # of what one pin keeps


class PinRefusal(NamedTuple):
    """Why a prefix is not pinned."""

    reason: Reason
    message: str


class PublicPrefix(NamedTuple):
    """Tokens [0, end) of a prompt lie under `root`, which is an operator's."""

    root: bytes
    end: int


@dataclass(frozen=True, slots=True)
class _Pin:
    number: int
    principal: str
    lease: Lease
    expires_at: float | None
    root: bytes
    tokens: array[int]
    public: bool


@dataclass(frozen=True, slots=True)
class _Coming:
    """room: what the pin adds to what is kept, at most. size: bytes that it will keep."""

    principal: str
    room: Room
    size: int


class Pins:
    """The pins of one tree. Single-threaded, like all of the core."""

    def __init__(
        self,
        facts: ModelFacts,
        limits: Limits,
        tree: Tree,
        stored: SnapshotRoom,
        bytes_: Ledger,
        buffers: Ledger,
    ) -> None:
        self._facts, self._limits, self._tree, self._stored = facts, limits, tree, stored
        self._bytes = bytes_.budget_bytes - bytes_.weights_bytes
        self._buffers = buffers.budget_bytes - buffers.weights_bytes - facts.live_buffers
        self._pins: dict[str, _Pin] = {}
        self._coming: dict[int, _Coming] = {}  # by sequence
        self._made = 0

    @property
    def bytes_beside(self) -> int:
        """What a request may count on, were it alone, whatever becomes of pins under way."""
        return self._bytes - Room.sum(self._stored.pins_max, *self._rooms_coming()).bytes

    def views(self, now: float) -> tuple[PinView, ...]:
        """Those whose time is not over, oldest first."""
        return tuple(_view(name, pin) for name, pin in self._pins.items() if not _over(pin, now))

    def refusal(self, request: Request, accepted: Iterable[Request]) -> PinRefusal | None:
        """Why the request cannot have its pin; None where room is held for it from now on.

        accepted: all requests that were let in.
        """
        if len(self._pins) + len(self._coming) >= self._limits.pins_max:
            message = f"at most {self._limits.pins_max} prefixes are pinned at once"
            return PinRefusal(Reason.CLIENT_QUOTA, message)
        coming = self._estimate(request)
        bound = request.pin.bytes_max if request.pin is not None else None
        if bound is not None and self._bytes_of(request.principal) + coming.size > bound:
            message = f"this client's pins would take more than its {bound} bytes"
            return PinRefusal(Reason.CLIENT_QUOTA, message)
        kept = Room.sum(self._stored.pins_max, coming.room, *self._rooms_coming())
        if not self._leaves_room(kept, (*accepted, request)):
            message = "the prefix would take more memory than there is for pins"
            return PinRefusal(Reason.OUT_OF_MEMORY, message)
        self._coming[request.id] = coming
        return None

    def give_up(self, id: int) -> None:
        """The sequence ended before its pin was made, or had none."""
        self._coming.pop(id, None)

    def make(
        self,
        request: Request,
        lease: Lease | None,
        accepted: Iterable[Request],
        step: int,
        now: float,
    ) -> PinView | None:
        """Keep a prompt that is stored along `lease`. None where it is not, or memory is short."""
        terms = request.pin
        assert terms is not None and terms.name not in self._pins, f"request {request.id}"
        self.give_up(request.id)
        kept = None
        if lease is not None and lease.end >= len(request.prompt):
            kept = self._stored.pin(lease, request.root, request.prompt, step)
        if kept is None:
            return None
        bound = self._bound(len(self._pins) + 1)
        others = [other for other in accepted if other is not request]
        if not self._leaves_room(Room.sum(bound, *self._rooms_coming()), others):
            self._stored.release(kept, step)
            return None
        self._stored.pins_max = bound
        return self._add(terms, request, kept, now)

    def unpin(self, name: str, step: int) -> bool:
        """Give a pin back to ordinary eviction. False where there is none of that name."""
        pin = self._pins.pop(name, None)
        if pin is None:
            return False
        self._stored.release(pin.lease, step)
        bound = self._bound(len(self._pins))
        self._stored.pins_max = Room(*map(min, zip(self._stored.pins_max, bound, strict=True)))
        return True

    def expire(self, step: int, now: float) -> None:
        """Unpin all whose time is over."""
        for name in [name for name, pin in self._pins.items() if _over(pin, now)]:
            self.unpin(name, step)

    def clear(self, order: Clear, holders: Iterable[Sequence]) -> Cleared:
        """Drop what the order says, but what pins keep. holders: all that may have a lease."""
        running = (s.lease for s in holders if s.lease is not None and s.begins_as(order))
        return Cleared(order.id, *self._stored.clear(order, running))

    def clear_root(self, id: int, root: bytes, holders: Iterable[Sequence]) -> Cleared:
        """Drop what lies under a root, but what pins keep; `id` is the order's."""
        running = (s.lease for s in holders if s.lease is not None and s.request.root == root)
        return Cleared(id, *self._stored.clear_root(root, running))

    def forget(self, principal: str, step: int) -> None:
        """Unpin all of one principal's."""
        for name in [name for name, pin in self._pins.items() if pin.principal == principal]:
            self.unpin(name, step)

    def close(self, step: int) -> None:
        """Unpin all."""
        for name in list(self._pins):
            self.unpin(name, step)

    def check(self) -> None:
        """L5, M1: what pins keep stays within what is held for them."""
        kept = self._tree.pinned
        assert self._stored.keeps_bound(), f"M1: {kept} of {self._stored.pins_max}"
        assert bool(self._pins) == bool(kept.buffers), f"{kept} kept by {len(self._pins)} pins"

    def public_prefix(self, request: Request, tokens: array[int]) -> PublicPrefix | None:
        """The longest of what operators keep under another root that the prompt begins with.

        All of it, or all but the last few tokens, where it may have been cut otherwise; one token
        of the prompt at least is left to be computed.
        """
        found = None
        for pin in self._pins.values():
            if not pin.public or pin.root == request.root:
                continue
            end = common(pin.tokens, 0, tokens, 0, len(tokens) - 1)
            whole = end >= max(1, len(pin.tokens) - PIN_MARGIN_TOKENS)
            if whole and (found is None or end > found.end):
                found = PublicPrefix(pin.root, end)
        return found

    def _add(self, terms: PinTerms, request: Request, lease: Lease, now: float) -> PinView:
        self._made += 1
        expires_at = None if terms.ttl_s is None else now + terms.ttl_s
        pin = self._pins[terms.name] = _Pin(
            self._made,
            request.principal,
            lease,
            expires_at,
            request.root,
            pack(request.prompt),
            terms.public,
        )
        return _view(terms.name, pin)

    def _estimate(self, request: Request) -> _Coming:
        """Its pin adds to what is kept all that no other pin keeps of it."""
        fresh = self._tree.unpinned_tokens(request.root, request.prompt)
        room = Room.sum(self._stored.wanted(*fresh), self._stored.cuts(CUTS_SPARE))
        tokens = len(request.prompt)
        whole = self._stored.wanted(tokens, kept_tokens(tokens, self._tree.window))
        return _Coming(request.principal, room, whole.bytes)

    def _bytes_of(self, principal: str) -> int:
        made = (pin_bytes(pin.lease) for pin in self._pins.values() if pin.principal == principal)
        coming = (each.size for each in self._coming.values() if each.principal == principal)
        return sum(made) + sum(coming)

    def _rooms_coming(self) -> Iterable[Room]:
        return (coming.room for coming in self._coming.values())

    def _bound(self, pins: int) -> Room:
        """Of what so many pins keep, as the tree is now and after some cuts."""
        if not pins:
            return Room(0)
        return Room.sum(
            self._stored.charged(self._tree.pinned), self._stored.cuts(CUTS_SPARE * pins)
        )

    def _leaves_room(self, kept: Room, accepted: Iterable[Request]) -> bool:
        share = self._limits.pins_share_max
        if kept.bytes > share * self._bytes or kept.buffers > share * self._buffers:
            return False
        facts, limits = self._facts, self._limits
        beside = self._bytes - kept.bytes
        demands = {Demand.of(request, facts) for request in accepted}
        return all(slots_bytes(facts, limits, [demand]) <= beside for demand in demands)


def _over(pin: _Pin, now: float) -> bool:
    return pin.expires_at is not None and pin.expires_at <= now


def _view(name: str, pin: _Pin) -> PinView:
    size = pin_bytes(pin.lease)
    end, expires_at = pin.lease.end, pin.expires_at
    return PinView(name, pin.principal, pin.number, end, size, expires_at, pin.public)

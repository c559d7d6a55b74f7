"""What operators were promised, by books of their own (T13, T14).

- A pin that was told of stays, until somebody unpins it or its time is over: after every step a
  prompt that goes on from its end, or from a little before it, finds all of it.
- What was cleared is gone at once where nobody lived on it, and where somebody did as soon as he
  ends, if nobody has come since.
- Pins keep no more than their share, and never what would keep out who was let in (L5: the end of
  every life says that).
"""

from __future__ import annotations

from dataclasses import dataclass

from sapwood.cache.prefix.leases import PIN_MARGIN_TOKENS
from sapwood.cache.prefix.tree import Tree
from sapwood.scheduler.core.core import Core
from sapwood.scheduler.events import Pinned, Request
from sapwood.scheduler.limits import Limits
from tests.scheduler.house import Stream

OTHER = 3  # a token that no prompt and no reply of a scenario has


@dataclass
class Promise:
    """A pin as its caller knows it."""

    request: Request
    ends_at: float | None


class OperatorChecks:
    """T13 and T14 over one core."""

    def __init__(self, core: Core, tree: Tree, limits: Limits, room_bytes: int) -> None:
        """room_bytes: all that there is beside the weights."""
        self._core, self._tree = core, tree
        self._share = limits.pins_share_max * room_bytes
        self._pins: dict[str, Promise] = {}
        self._told: set[int] = set()
        self._wiped = False  # all of it, while nothing was pinned, and nobody has come since

    def came(self) -> None:
        """Somebody asks for something."""
        self._wiped = False

    def unpinned(self, stream: Stream, found: bool, now: float) -> None:
        """found: what its caller was told."""
        assert stream.request.pin is not None
        self._let_go(now)
        known = self._pins.pop(stream.request.pin.name, None)
        assert found == (known is not None), f"T13: {found} for {known}"

    def cleared(self, tokens: tuple[int, ...]) -> None:
        """Right after it: what is left is held."""
        waiting, pinned = self._core._roster.waiting, self._tree.pinned.buffers
        self._wiped = not (tokens or waiting or pinned)
        paths: dict[int | None, tuple[int, ...]] = {}
        for node in self._tree.describe(tokens=True):
            paths[node.id] = paths.get(node.parent, ()) + (node.tokens or ())
            below = node.parent is not None and paths[node.id][: len(tokens)] == tokens
            assert not below or node.leases or node.pinned, f"T14: {node} is left"

    def look(self, streams: dict[int, Stream], now: float) -> None:
        """After each command and step."""
        for id in streams.keys() - self._told:
            stream = streams[id]
            if isinstance(stream.end, Pinned):
                ttl_s = stream.request.pin.ttl_s if stream.request.pin else None
                ends_at = None if ttl_s is None else now + ttl_s
                self._pins[stream.end.pin.name] = Promise(stream.request, ends_at)
            if stream.end is not None:
                self._told.add(id)
        self._let_go(now)
        named = {pin.name for pin in self._core.pins(now)}
        assert self._pins.keys() <= named, f"T13: {self._pins.keys() - named} are gone"
        for promise in self._pins.values():
            self._check_kept(promise.request)
        kept = self._tree.pinned.bytes
        assert kept <= self._share, f"T13: pins keep {kept} bytes, their share is {self._share}"
        if self._wiped and not self._core.has_work:
            left = [n for n in self._tree.describe() if n.parent is not None and not n.pinned]
            assert not left, f"T14: {len(left)} nodes outlive who held them"

    def check_idle_pins(self, now: float) -> None:
        """T13: behind its time it keeps nothing."""
        self._let_go(now)
        kept = {pin.name for pin in self._core.pins(now)}
        assert kept == self._pins.keys(), f"T13: {kept} are kept, {self._pins.keys()} were promised"
        pinned = any(node.pinned for node in self._tree.describe())
        assert pinned == bool(kept), f"T13: {pinned}, and pins {kept}"

    def _let_go(self, now: float) -> None:
        for name, pin in list(self._pins.items()):
            if pin.ends_at is not None and pin.ends_at <= now:
                del self._pins[name]

    def _check_kept(self, request: Request) -> None:
        prompt = request.prompt
        for end in {len(prompt), max(1, len(prompt) - PIN_MARGIN_TOKENS)}:
            found = self._tree.match(request.root, (*prompt[:end], OTHER)).tokens
            assert found == end, f"T13: [0, {found}) of [0, {end}) can be restored"

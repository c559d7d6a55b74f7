"""What operators pin serves every tenant: it is copied to under the root of whoever asks for it.

- A prompt that begins with an operator's pin finds it, whosever it is, as if its own tenant had
  sent it before. What lies behind the pin is never looked at, and nobody's use of it shows: a copy
  is made by whether the pin is there, and by what the tenant itself has.
- The copy is the tenant's, like all under its root: evicted by its worth, erased with it. So what
  tenants make of a public prefix never meets, and a pin that is given up ends nobody's prefix.
- It is made when a request is let in, between two steps. Where room is short it is computed.
"""

from __future__ import annotations

from sapwood.cache.prefix.tree import Tree
from sapwood.scheduler.core.pins import Pins, PublicPrefix
from sapwood.scheduler.core.sequence import Sequence
from sapwood.scheduler.core.snapshot_room import SnapshotRoom
from sapwood.scheduler.limits import Limits


class PublicPins:
    """Copies within one tree. Single-threaded, like all of the core."""

    def __init__(self, limits: Limits, tree: Tree, stored: SnapshotRoom, pins: Pins) -> None:
        self._limits, self._tree, self._stored, self._pins = limits, tree, stored, pins

    def adopt(self, sequence: Sequence, step: int) -> None:
        """Give its tenant what is public of the prompt, where that saves anything."""
        request, tokens = sequence.request, sequence.packed
        if not sequence.reads_tree or request.pin is not None:
            return
        public = self._pins.public_prefix(request, tokens)
        if public is None:
            return
        own = self._tree.match(request.root, tokens)
        if public.end - own.tokens >= self._limits.share_tokens_min:
            self._copy(sequence, public, own.matched, step)

    def _copy(self, sequence: Sequence, public: PublicPrefix, matched: int, step: int) -> None:
        root, tokens, end = sequence.request.root, sequence.packed, public.end
        window = max(0, end - self._tree.window) if self._tree.window else end
        start = min(matched, window, end - 1)
        # Held while room is made, which must not take it, nor what it goes on from.
        source = self._tree.lease(public.root, tokens, end, step)
        lease = self._tree.lease(root, tokens, min(matched, end), step)
        try:
            if self._stored.make(self._stored.wanted(end - start, end - window), step):
                for payload in self._tree.copies(public.root, tokens, start, end, window):
                    self._stored.insert(lease, tokens, payload, step, turn_end=False)
        finally:
            self._stored.release(lease, step)
            self._stored.release(source, step)

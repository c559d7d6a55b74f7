"""What it is worth that a sequence can go on at an end: chance, times what it saves, by its bytes.

- chance: an end that was idle for so many uses is asked for at a rate like r / (idle + 2)^1.5. A
  use is a sequence that lived in the tree. r is learned for each class of ends: how it came about,
  how often it was asked for, whether anything goes on behind it. So ends that are never asked for
  (a reply whose thinking the next prompt leaves out) soon count for nothing.
- Who would have gone on at an end that was given up goes on at the last one before it: each such
  end behind adds a tenth. So old conversations keep an end here and there.
- saved: the tokens from the end before it at which a sequence could go on as well.
- bytes: of its window, what is read by others too in equal parts, and of a leaf its full K/V. By
  what it alone holds, ends that share a window would protect each other for ever.
- r is hits over the integral of 1 / (idle + 2), what they would be were all ends alike, as far as a
  prior lets them. That the chance falls more steeply, and the figures, come from replayed traces
  (`make bench ARGS=traces`), not from a theory.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from math import log

from sapwood.cache.prefix.node import EndKind, Lease, Node

IDLE_USES, DECAY = 2, 1.5
PRIOR_RATE, PRIOR_EXPOSURE = 0.5, 3.0
GIVEN_UP_SHARE = 0.1
_HITS_TOLD = 2  # as often or oftener

# Ends that are taken for alike: how often one was asked for, and whether nothing goes on there.
EndClass = tuple[EndKind, int, bool]


def class_of(node: Node) -> EndClass:
    """Of the node's end."""
    return node.end_kind, min(node.end_hits, _HITS_TOLD), not node.children


class ReuseRates:
    """How often ends were asked for, by class, against how long they idled. Clock: uses."""

    def __init__(self) -> None:
        self._uses = 0
        self._hits: Counter[EndClass] = Counter()
        self._exposure: defaultdict[EndClass, float] = defaultdict(float)

    def tick(self) -> None:
        """One use more."""
        self._uses += 1

    def begin(self, node: Node) -> None:
        """The node is new."""
        node.used = node.exposed = self._uses

    def touch(self, node: Node) -> None:
        """The node's end is in use."""
        self.expose(node)
        node.used = node.exposed = self._uses

    def hit(self, lease: Lease) -> None:
        """A prompt is served from the lease's end; it counts where that is a node's end."""
        node = lease.node
        self.touch(node)
        if lease.end == node.end and node.parent is not None:
            self._hits[class_of(node)] += 1
            node.end_hits += 1

    def chance(self, node: Node) -> float:
        """That the node's end, or one given up behind it, is asked for with the next use.

        But for a factor of all.
        """
        kind = class_of(node)
        hits = self._hits[kind] + PRIOR_RATE * PRIOR_EXPOSURE
        rate = hits / (self._exposure[kind] + PRIOR_EXPOSURE)
        own = rate / (self._uses - node.used + IDLE_USES) ** DECAY
        return float(own * (1.0 + GIVEN_UP_SHARE * node.given_up))

    def expose(self, node: Node) -> None:
        """Account for its idling since it was looked at last; before its chance is asked for."""
        now, before = self._uses - node.used, node.exposed - node.used
        if now > before:
            self._exposure[class_of(node)] += log((now + IDLE_USES) / (before + IDLE_USES))
            node.exposed = self._uses

"""A radix tree of token ids for the policies beside ours, which say themselves what may go.

- Made of the production tree's moves, so that both cut edges alike; nothing ever merges.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from bench.replay.payload import WeightlessPayload
from bench.replay.trace import KVShape
from sapwood.cache.prefix.node import Node, Totals
from sapwood.cache.prefix.radix import attach, descend, detach, pack, split


class RadixEdges:
    """A radix tree of what is stored, by the moves of the production tree; nothing ever merges."""

    def __init__(self, shape: KVShape, sliding: bool) -> None:
        """sliding: whether an edge holds the sliding K/V of all its tokens, or none."""
        self._shape, self._sliding = shape, sliding
        self.totals = Totals()
        self.top = Node(self.totals.draw_id(), None, pack(()), 0, 0, None, 0)

    def find(self, tokens: array[int]) -> tuple[Node, int]:
        """The deepest node that `tokens` reach, and how many of them agree."""
        return descend(self.top, tokens, 0, len(tokens))

    def store(self, tokens: array[int], ends: Sequence[int]) -> list[Node]:
        """Hold all of `tokens`; the nodes whose edges end at `ends`, ascending, the last is all."""
        return [self._store_to(tokens[:end]) for end in ends]

    def _store_to(self, tokens: array[int]) -> Node:
        node, matched = self.find(tokens)
        if node.parent and matched < node.end:
            node = split(node, matched, self.totals)
        if matched == len(tokens):
            return node
        end = len(tokens)
        payload = WeightlessPayload(self._shape, matched, end, matched if self._sliding else end)
        return attach(node, tokens[matched:], payload, 0, self.totals)

    def drop(self, leaf: Node) -> None:
        """A node without children."""
        detach(leaf, self.totals)

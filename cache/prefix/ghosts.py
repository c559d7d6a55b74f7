"""Marks of what was evicted, so that a miss can be told from one that memory caused.

- A ghost is a place in the tree, the evicted edge's first tokens, and nothing else: no K/V.
- There are at most `ghosts_max`; the oldest fade first. They answer metrics, never a match.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence

from sapwood.cache.prefix.node import Node
from sapwood.cache.prefix.radix import common

# Enough tokens to tell one continuation from another, few enough to keep by the ten thousand.
TOKENS_KEPT = 16

_Place = bytes | int


def _place(node: Node) -> _Place:
    """Names a node's end for good: roots come and go, their keys stay."""
    return node.id if node.parent else node.root


class Ghosts:
    """A bounded memory of evicted edges by the place they hung on."""

    def __init__(self, ghosts_max: int) -> None:
        self._ghosts_max = ghosts_max
        self._edges: OrderedDict[tuple[_Place, int], array[int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._edges)

    def remember(self, leaf: Node) -> None:
        """`leaf` is about to be evicted."""
        key = _place(leaf.above), leaf.edge[0]
        self._edges[key] = leaf.edge[:TOKENS_KEPT]
        self._edges.move_to_end(key)
        if len(self._edges) > self._ghosts_max:
            self._edges.popitem(last=False)

    def at(self, node: Node, tokens: Sequence[int]) -> bool:
        """Whether what `tokens` ask for beyond the end of `node` once hung there."""
        return self._haunts(_place(node), node.end, tokens)

    def at_root(self, root: bytes, tokens: Sequence[int]) -> bool:
        """The same for a root that may be gone."""
        return self._haunts(root, 0, tokens)

    def _haunts(self, place: _Place, position: int, tokens: Sequence[int]) -> bool:
        if position >= len(tokens):
            return False
        edge = self._edges.get((place, tokens[position]))
        if edge is None:
            return False
        count = min(len(edge), len(tokens) - position)
        return common(edge, 0, tokens, position, len(tokens)) == count

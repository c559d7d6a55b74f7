"""What a tree says of its paths: read by the core, by operators, and by who copies to disk.

- Nothing here changes anything. What is lent stays the tree's, until its next change.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from sapwood.cache.prefix.blocks import Block, Names
from sapwood.cache.prefix.catalogue import Catalogue, Kind
from sapwood.cache.prefix.counts import TreeCounts
from sapwood.cache.prefix.describe import EdgeView, NodeView, audit, edges_of, view
from sapwood.cache.prefix.node import Lease, Node
from sapwood.cache.prefix.radix import descend, preorder, trail
from sapwood.cache.prefix.sketch import Sketch, sketch
from sapwood.cache.prefix.snapshot import Payload


class TreeViews(TreeCounts):
    """The paths of one tree, which writes to `_roots`."""

    def __init__(self) -> None:
        super().__init__()
        self._roots: dict[bytes, Node] = {}

    def edges(self, lease: Lease) -> list[tuple[int, int]]:
        """(end, sequences on it) of every edge of the path, root to leaf, up to lease.end."""
        path = trail(lease.node)
        return [(min(node.end, lease.end), node.leases - node.pins) for node in path]

    def outline(self, root: bytes) -> list[EdgeView]:
        """All edges below one root, parents first, as they are now. O(nodes)."""
        return list(edges_of(self._roots.get(root)))

    def describe(self, *, tokens: bool = False) -> Iterator[NodeView]:
        """Every node, parents first; token ids only where asked for. Read it in one go."""
        return (view(node, tokens) for node in preorder(self._roots.values()))

    def sketch(self, looks_max: int, nodes_max: int) -> Sketch:
        """What can be seen at a glance: at most `nodes_max` nodes, of `looks_max` looked at."""
        return sketch(self._roots.values(), self._totals.nodes, looks_max, nodes_max)

    def cover(self, root: bytes, tokens: array[int], block: Block) -> tuple[Payload, ...]:
        """What holds the block's full K/V, oldest first. Empty: nothing, or some was cleared."""
        found = [node for node in self._known(root, tokens, block.end) if node.end > block.start]
        whole = bool(found) and found[-1].end >= block.end
        return tuple(node.stored for node in found) if whole else ()

    def copies(
        self, root: bytes, tokens: array[int], start: int, end: int, sliding_start: int
    ) -> list[Payload]:
        """[start, end) of a path that is here, once more: a payload for each edge, oldest first.

        With sliding K/V from sliding_start on, as far as it is here. They are the caller's.
        """
        node, matched = descend(self._roots[root], tokens, 0, end)
        assert matched == end, f"only [0, {matched}) of [0, {end}) is here"
        return [
            each.stored.copy(max(start, each.start), min(each.end, end), sliding_start)
            for each in trail(node)
            if each.end > start
        ]

    def worth_windows(self, root: bytes, tokens: array[int], end: int) -> list[int]:
        """Where on a path up to `end` a turn ended or paths part, and `end` itself."""
        return [n.end for n in self._known(root, tokens, end) if n.marked and n.end < end] + [end]

    def on_disk(
        self, names: Names, catalogue: Catalogue, tokens_max: int | None = None
    ) -> dict[int, dict[Kind, int]]:
        """By node, the bytes of the files of blocks that end in it. Hashes all tokens.

        tokens_max: no node is begun after so many; the rest is left out.
        """
        found: dict[int, dict[Kind, int]] = {}
        ends: dict[int, tuple[bytes, bytes, array[int]]] = {}  # root key, last block, what is over
        hashed = 0
        for node in preorder(self._roots.values()):
            if node.parent is None:
                ends[node.id] = node.root, names.top, array("i")
                continue
            if tokens_max is not None and hashed >= tokens_max:
                break
            hashed += node.end - node.start
            root, above, rest = ends[node.above.id]
            tokens = rest + node.edge
            paths = names.paths(tokens, len(tokens), above)
            over = tokens[(len(paths) - 1) * names.block_tokens :]
            ends[node.id] = root, paths[-1], over
            found[node.id] = catalogue.sizes(names.name(root, path) for path in paths[1:])
        return found

    def check(self) -> None:
        """Assert the structure: T1, T5, T7, T9 and the totals. O(nodes)."""
        audit(self._roots, self._totals)

    def _known(self, root: bytes, tokens: array[int], end: int) -> list[Node]:
        """The nodes that hold [0, end) of a path, as far as it is here and not cleared."""
        top = self._roots.get(root)
        if top is None:
            return []
        node, matched = descend(top, tokens, 0, end)
        path = [each for each in trail(node) if not each.doomed]
        return [each for each in path if min(each.end, end) <= matched]

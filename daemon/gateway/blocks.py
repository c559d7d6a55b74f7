"""The prefix tree as blocks of tokens, which is how a router knows what a worker has. Pure.

- Block k of a path is its tokens [k * BLOCK, (k + 1) * BLOCK); its hash is made of the hash of the
  block before it and of its tokens, so equal hashes are equal paths.
- Only what leads to a restorable end is told: a router sends a request where its longest chain of
  blocks lies, and a chain whose windows are gone would promise what has to be computed again. A
  prompt that leaves such a path half way may still find less there than was told.
- An edge's end and its path never change; its start does, by splits and merges. So what an edge
  means in blocks is remembered by id and start, and only new ones are hashed.
- A change lists what went first, then what came, parents before children.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

from sapwood.cache.prefix.describe import EdgeView

BLOCK = 32
_HASH_BYTES = 8


class TokenBlock(NamedTuple):
    """One block of some path. parent: the hash of the one before, None for the first."""

    hash: int
    parent: int | None
    tokens: array[int]


class BlockChange(NamedTuple):
    """What a router is to forget and to learn."""

    removed: tuple[int, ...]
    stored: tuple[TokenBlock, ...]


class _EdgeBlocks(NamedTuple):
    """The blocks that end inside of an edge, and what is left of the path behind the last one."""

    blocks: tuple[TokenBlock, ...]
    last: int | None
    rest: array[int]


_NOTHING = _EdgeBlocks((), None, array("i"))


class BlockIndex:
    """What one router was told of one tree. Not for several threads at once."""

    def __init__(self, window: int, block_tokens: int = BLOCK) -> None:
        """window: tokens of sliding K/V that a restore needs."""
        self._window, self._block_tokens = window, block_tokens
        self._edges: dict[tuple[int, int], _EdgeBlocks] = {}

    def update(self, edges: Sequence[EdgeView]) -> BlockChange:
        """`edges`: all there are, parents first. What changed since the last call."""
        wanted = restorable_edges(edges, self._window)
        before, self._edges = self._edges, {}
        at: dict[int, _EdgeBlocks] = {}
        come: list[TokenBlock] = []
        for edge in edges:
            if edge.id in wanted:
                key = edge.id, edge.start
                known = before.pop(key, None)
                if known is None:
                    known = self._blocks(edge, _NOTHING if edge.parent is None else at[edge.parent])
                    come += known.blocks
                at[edge.id] = self._edges[key] = known
        # What an edge lost to another, by a split or a merge, is there as before.
        gone = {block.hash for one in before.values() for block in one.blocks}
        moved = gone.intersection(block.hash for block in come)
        return BlockChange(tuple(gone - moved), tuple(b for b in come if b.hash not in moved))

    def _blocks(self, edge: EdgeView, above: _EdgeBlocks) -> _EdgeBlocks:
        tokens, size = above.rest + edge.tokens, self._block_tokens
        blocks: list[TokenBlock] = []
        last = above.last
        for start in range(0, len(tokens) - size + 1, size):
            piece = tokens[start : start + size]
            block = TokenBlock(_hash(last, piece), last, piece)
            blocks.append(block)
            last = block.hash
        return _EdgeBlocks(tuple(blocks), last, tokens[len(blocks) * size :])


def restorable_edges(edges: Sequence[EdgeView], window: int) -> set[int]:
    """The ids of those at whose end, or below, a sequence can go on."""
    whole_from: dict[int | None, int] = {None: 0}
    wanted: set[int] = set()
    for edge in edges:
        own = edge.sliding_start
        whole_from[edge.id] = own if own > edge.start else whole_from[edge.parent]
    for edge in reversed(edges):
        if edge.id in wanted or whole_from[edge.id] <= max(0, edge.end - window):
            wanted.add(edge.id)
            if edge.parent is not None:
                wanted.add(edge.parent)
    return wanted


def runs(blocks: Iterable[TokenBlock], blocks_max: int) -> Iterator[list[TokenBlock]]:
    """Blocks that follow each other directly, at most so many at a time."""
    run: list[TokenBlock] = []
    for block in blocks:
        if run and (block.parent != run[-1].hash or len(run) == blocks_max):
            yield run
            run = []
        run.append(block)
    if run:
        yield run


def _hash(parent: int | None, tokens: array[int]) -> int:
    digest = blake2b(tokens.tobytes(), digest_size=_HASH_BYTES, key=str(parent).encode())
    return int.from_bytes(digest.digest(), signed=True)

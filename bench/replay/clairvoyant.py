"""What could be kept by somebody who knows the whole trace: what is used last goes first.

- Its units are ranges of a path, cut wherever any request of the trace hits or parts: of each the
  full K/V, and the sliding K/V as one more. It may hold any of them, so also a window alone.
- After each request it fills its budget anew from what it has: the next request's best hit first,
  then that of the one after it, and so on; where a hit does not fit any more the best shorter one
  that does. What is shared weighs once. So what goes is what is used last, in any number of bytes.
- It is greedy, not the best of all: that one is NP-hard, as units are of different sizes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.replay.edges import RadixEdges
from bench.replay.trace import KVShape, TraceRequest
from sapwood.cache.prefix.node import Node
from sapwood.cache.prefix.radix import trail


@dataclass(frozen=True, slots=True)
class _Path:
    """A request's units, root to leaf; the first `known` of them lie before its best hit."""

    nodes: tuple[Node, ...]
    known: int


class Clairvoyant:
    """Serves the trace that it was made for, request by request, in order."""

    def __init__(self, shape: KVShape, budget_bytes: int, trace: Sequence[TraceRequest]) -> None:
        self._shape, self._budget_bytes = shape, budget_bytes
        self._paths = _paths_of(shape, trace)
        self._next = 0
        self._full: set[Node] = set()  # whose full K/V is held
        self._sliding: set[Node] = set()

    @property
    def held_bytes(self) -> int:
        return self._weigh(self._full, self._sliding)

    def serve(self, request: TraceRequest) -> int:
        path = self._paths[self._next]
        self._next += 1
        hits = self._hits(path)
        hit = hits[-1] if hits else 0
        self._full.update(path.nodes)
        self._sliding.update(path.nodes[hit:])
        self._keep()
        found = path.nodes[hit - 1].end if hit else 0
        return min(found, len(request.prompt) - 1)

    def _hits(self, path: _Path) -> list[int]:
        """How many units of the path each hit has that is possible now, ascending."""
        hits, since = [], 0
        for index, node in enumerate(path.nodes[: path.known]):
            if node not in self._full:
                break
            if node not in self._sliding:
                since = node.end
            if since <= max(0, node.end - self._shape.window):
                hits.append(index + 1)
        return hits

    def _keep(self) -> None:
        """Drop all but what the nearest requests need, as many as fit."""
        full, sliding = set[Node](), set[Node]()
        left = self._budget_bytes
        for path in self._paths[self._next :]:
            for hit in reversed(self._hits(path)):
                wanted = path.nodes[:hit]
                more_full = [node for node in wanted if node not in full]
                more_sliding = [n for n in self._window(wanted) if n not in sliding]
                weight = self._weigh(more_full, more_sliding)
                if weight <= left:
                    left -= weight
                    full.update(more_full)
                    sliding.update(more_sliding)
                    break
        self._full, self._sliding = full, sliding

    def _window(self, nodes: Sequence[Node]) -> Iterable[Node]:
        """Those in which the window before their end lies."""
        first = nodes[-1].end - self._shape.window
        return (node for node in nodes if node.end > first)

    def _weigh(self, full: Iterable[Node], sliding: Iterable[Node]) -> int:
        full_tokens, sliding_tokens = sum(map(_tokens, full)), sum(map(_tokens, sliding))
        return full_tokens * self._shape.full_bytes + sliding_tokens * self._shape.sliding_bytes


def _tokens(node: Node) -> int:
    return node.end - node.start


def _paths_of(shape: KVShape, trace: Sequence[TraceRequest]) -> list[_Path]:
    """Each request's path, cut at all best hits of the trace and at the beginnings of windows."""
    edges, hits = RadixEdges(shape, sliding=True), list[int]()
    for request in trace:
        _, matched = edges.find(request.prompt)
        hit, stored = min(matched, len(request.prompt) - 1), request.stored
        edges.store(stored, [end for end in (hit - shape.window, hit) if end > 0])
        edges.store(stored, (len(request.prompt), len(stored)))
        hits.append(hit)
    paths = []
    for request, hit in zip(trace, hits, strict=True):
        node, matched = edges.find(request.stored)
        assert matched == node.end == len(request.stored), f"{matched} tokens of a path are known"
        nodes = tuple(trail(node))
        paths.append(_Path(nodes, sum(node.end <= hit for node in nodes)))
    return paths

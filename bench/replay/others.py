"""What others keep: everything, the edges used last, mlx-lm's prompt caches, states in strides.

- Each counts what it holds by KVShape and is within its budget when a request has been served.
- A hit needs what the trace's module says; what a policy keeps decides where it can have one.
- Memory that a request takes while it is served is nobody's concern here.
"""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import dataclass

from bench.replay.edges import RadixEdges
from bench.replay.trace import KVShape, TraceRequest
from sapwood.cache.prefix.node import Node
from sapwood.cache.prefix.radix import common, preorder, trail


class InfiniteCache:
    """Holds everything for good: what nobody can do better than."""

    def __init__(self, shape: KVShape) -> None:
        self._edges = RadixEdges(shape, sliding=True)

    @property
    def held_bytes(self) -> int:
        return self._edges.totals.bytes

    def serve(self, request: TraceRequest) -> int:
        _, matched = self._edges.find(request.prompt)
        stored = request.stored
        self._edges.store(stored, (len(stored),))
        return min(matched, len(request.prompt) - 1)


class EdgeLRU:
    """Holds edges of a radix tree, each with full and sliding K/V of all its tokens.

    A use refreshes all edges of its path, which is cut where a prompt leaves it and where a prompt
    ends. The leaf that was used least recently goes first, as a whole. What is held can be restored
    everywhere.
    """

    def __init__(self, shape: KVShape, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._edges = RadixEdges(shape, sliding=True)
        self._now = 0

    @property
    def held_bytes(self) -> int:
        return self._edges.totals.bytes

    def serve(self, request: TraceRequest) -> int:
        self._now += 1
        _, matched = self._edges.find(request.prompt)
        stored = request.stored
        *_, last = self._edges.store(stored, (len(request.prompt), len(stored)))
        for node in trail(last):
            node.age = self._now
        self._evict()
        return min(matched, len(request.prompt) - 1)

    def _evict(self) -> None:
        while self.held_bytes > self._budget_bytes:
            nodes = preorder([self._edges.top])
            leaves = (node for node in nodes if node.parent and not node.children)
            self._edges.drop(min(leaves, key=lambda leaf: (leaf.age, -leaf.end)))


class StrideLRU:
    """Holds states each 2,048 tokens of a prompt and at its end: all full K/V and a window.

    Full K/V that several states share is held once, a window by each state for itself. A hit is at
    a state, which it refreshes; the state that was used least recently goes first, and with it the
    full K/V that no other one needs. Replies leave none.
    """

    def __init__(self, shape: KVShape, budget_bytes: int, stride_tokens: int = 2048) -> None:
        self._shape, self._budget_bytes, self._stride = shape, budget_bytes, stride_tokens
        self._edges = RadixEdges(shape, sliding=False)
        self._states: dict[Node, int] = {}  # the node that each ends with, by age
        self._now = 0

    @property
    def held_bytes(self) -> int:
        windows = sum(min(node.end, self._shape.window) for node in self._states)
        return self._edges.totals.bytes + windows * self._shape.sliding_bytes

    def serve(self, request: TraceRequest) -> int:
        self._now += 1
        prompt = request.prompt
        # A state of the whole prompt cannot take a token back.
        node, matched = self._edges.find(prompt[:-1])
        on_path = [each for each in trail(node) if each in self._states and each.end <= matched]
        found = on_path[-1].end if on_path else 0
        if on_path:
            self._states[on_path[-1]] = self._now
        first = (found // self._stride + 1) * self._stride
        ends = (*range(first, len(prompt), self._stride), len(prompt))
        for state in self._edges.store(prompt, ends):
            self._states[state] = self._now
        self._evict()
        return found

    def _evict(self) -> None:
        while self.held_bytes > self._budget_bytes:
            node = min(self._states, key=lambda state: (self._states[state], -state.end))
            del self._states[node]
            while node.parent and not node.children and node not in self._states:
                parent = node.above
                self._edges.drop(node)
                node = parent


@dataclass(frozen=True, slots=True)
class _PromptCache:
    """One entry: the K/V of all `tokens`, in full layers all, in sliding ones their last window."""

    tokens: array[int]
    bytes: int


class PromptCacheLRU:
    """mlx-lm's LRUPromptCache with its server's uses, under bytes alone: entries are not counted.

    Holds caches of whole sequences, each for itself: at the end of the system prompt and of the
    prompt where a user wrote last ("system", "user"), and of each reply ("assistant"). A hit is an
    entry that the prompt begins with, or one shorter than the window, which is cut where it parts:
    past the window a rotating cache cannot be trimmed. An entry goes oldest first, an "assistant"
    as long as there are as many as of "user", then a "user" likewise; being found does not refresh
    it. An entry that can be trimmed replaces those that are its prefixes.
    """

    def __init__(self, shape: KVShape, budget_bytes: int) -> None:
        self._shape, self._budget_bytes = shape, budget_bytes
        self._kinds: tuple[deque[_PromptCache], ...] = (deque(), deque(), deque())

    @property
    def held_bytes(self) -> int:
        return sum(entry.bytes for kind in self._kinds for entry in kind)

    def serve(self, request: TraceRequest) -> int:
        prompt = request.prompt
        found = max((self._usable(e, prompt) for kind in self._kinds for e in kind), default=0)
        assistants, users, systems = self._kinds
        if request.from_user and found < request.system_tokens < len(prompt):
            self._insert(systems, prompt[: request.system_tokens])
        if request.from_user:
            self._insert(users, prompt)
        self._insert(assistants, request.stored)
        return min(found, len(prompt) - 1)

    def _usable(self, entry: _PromptCache, prompt: array[int]) -> int:
        agreed = common(entry.tokens, 0, prompt, 0, len(prompt))
        return agreed if agreed == len(entry.tokens) or self._trims(entry) else 0

    def _trims(self, entry: _PromptCache) -> bool:
        return len(entry.tokens) < self._shape.window

    def _insert(self, kind: deque[_PromptCache], tokens: array[int]) -> None:
        shape = self._shape
        full, sliding = len(tokens), min(len(tokens), shape.window)
        entry = _PromptCache(tokens, full * shape.full_bytes + sliding * shape.sliding_bytes)
        for each in self._kinds:
            for old in [old for old in each if self._replaces(entry, old)]:
                each.remove(old)
        kind.append(entry)
        while self.held_bytes > self._budget_bytes:
            self._next_to_go().popleft()

    def _replaces(self, new: _PromptCache, old: _PromptCache) -> bool:
        if new.tokens == old.tokens:
            return True
        return self._trims(new) and new.tokens[: len(old.tokens)] == old.tokens

    def _next_to_go(self) -> deque[_PromptCache]:
        assistants, users, systems = self._kinds
        if assistants and len(assistants) >= len(users):
            return assistants
        if users and len(users) >= len(systems):
            return users
        return systems

"""Stop strings found in a text that comes in pieces.

- The first to complete wins; of those that complete with the same character the longest.
- Every character is looked at once (Aho-Corasick, amortised): linear in the text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class StopAutomaton:
    """Aho-Corasick over a request's stop strings; a state is a node of their trie.

    `depth[state]` is how many of the last characters begin some stop string, `match[state]` the
    longest stop string that ends here, "" where none does.
    """

    __slots__ = ("_fail", "_next", "depth", "match")

    def __init__(self, stops: Sequence[str]) -> None:
        assert all(stops), "an empty stop string would end every reply before it begins"
        self._next: list[dict[str, int]] = [{}]
        self._fail = [0]
        self.depth = [0]
        self.match = [""]
        for stop in stops:
            self._add(stop)
        self._link()

    def _add(self, stop: str) -> None:
        state = 0
        for char in stop:
            following = self._next[state].get(char)
            if following is None:
                following = len(self._next)
                self._next[state][char] = following
                self._next.append({})
                self._fail.append(0)
                self.depth.append(self.depth[state] + 1)
                self.match.append("")
            state = following
        self.match[state] = stop

    def _link(self) -> None:
        """Breadth first: a shorter suffix has its links before a longer one asks for them."""
        queue = deque(self._next[0].values())
        while queue:
            state = queue.popleft()
            for char, following in self._next[state].items():
                self._fail[following] = self.advance(self._fail[state], char)
                queue.append(following)
            self.match[state] = self.match[state] or self.match[self._fail[state]]

    def advance(self, state: int, char: str) -> int:
        """The state after one more character; a text begins in state 0."""
        while state and char not in self._next[state]:
            state = self._fail[state]
        return self._next[state].get(char, 0)

"""The connections of one client: calls spread over as many as they need.

- One connection carries a bounded number of calls at once; what is over is refused by the
  transport, without a reason. So a client that has many calls open opens another connection.
- gRPC shares a connection among all channels of a process that look the same. They are told apart
  by a number, which goes round: clients share connections, a few of each process.
- Safe to use from several threads.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

_CALLS_PER_LANE = 64
_LANES_MAX = 8
_numbers = itertools.count()

_Lane = TypeVar("_Lane")


class Lanes(Generic[_Lane]):
    """A lane is a channel with its stubs; `make` opens one under a number."""

    def __init__(self, make: Callable[[int], _Lane]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._lanes: list[_Lane] = []
        self._calls: list[int] = []  # open, by lane
        self._open()

    @property
    def all(self) -> list[_Lane]:
        """Those that were opened."""
        return list(self._lanes)

    def take(self) -> tuple[_Lane, Callable[[], None]]:
        """The lane for one more call, and what is called once that has ended."""
        with self._lock:
            index = min(range(len(self._calls)), key=self._calls.__getitem__)
            if self._calls[index] >= _CALLS_PER_LANE and len(self._lanes) < _LANES_MAX:
                index = self._open()
            self._calls[index] += 1
        return self._lanes[index], lambda: self._leave(index)

    @contextmanager
    def lane(self) -> Iterator[_Lane]:
        """The lane for one call, for as long as it takes."""
        lane, leave = self.take()
        try:
            yield lane
        finally:
            leave()

    def _open(self) -> int:
        self._lanes.append(self._make(next(_numbers) % _LANES_MAX))
        self._calls.append(0)
        return len(self._lanes) - 1

    def _leave(self, index: int) -> None:
        with self._lock:
            self._calls[index] -= 1

"""Which of several daemons gets a request, by the rules of SMG 1.13. Pure.

- Random; a ring of hashes, on which a client's key has one place; and what the daemons tell of
  their trees: whoever has the longest chain of the prompt's blocks, unless it is far busier than
  the others.
- As `smg launch --help` and the source of an earlier version have them, for daemons that all live
  and hold nobody in a queue. Left out: that a worker whose tree is thin gets some requests although
  another one has their prefix.
"""

from __future__ import annotations

from array import array
from bisect import bisect
from collections.abc import Callable, Sequence
from hashlib import blake2b
from random import Random
from typing import Protocol

from sapwood.daemon.gateway.blocks import BLOCK, BlockChange

RING_PLACES = 150  # of each worker
SPILL_RATIO, SPILL_REQUESTS, SPILL_REQUESTS_MIN = 1.5, 64, 4


class Router(Protocol):
    """Chooses. One that listens hears what each tree gained and lost."""

    listens: bool

    def choose(self, key: int, prompt: array[int], running: Sequence[int]) -> int:
        """A worker's number. key: the client's; running: requests of each worker now."""

    def hear(self, worker: int, change: BlockChange) -> None:
        """One worker's events."""


class RandomRouter:
    """Knows nothing."""

    listens = False

    def __init__(self, workers: int, random: Random) -> None:
        self._workers, self._random = workers, random

    def choose(self, key: int, prompt: array[int], running: Sequence[int]) -> int:
        return self._random.randrange(self._workers)

    def hear(self, worker: int, change: BlockChange) -> None:
        pass


class RingRouter:
    """The same client always comes to the same worker."""

    listens = False

    def __init__(self, workers: int, random: Random) -> None:
        self._places = sorted(
            (_place(f"worker{worker}", number), worker)
            for worker in range(workers)
            for number in range(RING_PLACES)
        )

    def choose(self, key: int, prompt: array[int], running: Sequence[int]) -> int:
        at = bisect(self._places, (_place("client", key), 0))
        return self._places[at % len(self._places)][1]

    def hear(self, worker: int, change: BlockChange) -> None:
        pass


class EventRouter:
    """Knows each worker's blocks by their parents and tokens, as events tell them."""

    listens = True

    def __init__(self, workers: int, random: Random) -> None:
        self._random = random
        self._served = [0] * workers
        self._next: dict[tuple[int | None, bytes], int] = {}
        self._holders: dict[int, set[int]] = {}
        self._places: dict[int, tuple[int | None, bytes]] = {}

    def choose(self, key: int, prompt: array[int], running: Sequence[int]) -> int:
        least = min(range(len(running)), key=lambda at: (running[at], self._served[at]))
        holders = self._longest(prompt)
        chosen = least
        if holders:
            fewest = min(running[at] for at in holders)
            chosen = self._random.choice(sorted(at for at in holders if running[at] == fewest))
            chosen = least if spills(running[chosen], running) else chosen
        self._served[chosen] += 1
        return chosen

    def hear(self, worker: int, change: BlockChange) -> None:
        for hash in change.removed:
            holders = self._holders[hash]
            holders.remove(worker)
            if not holders:
                del self._holders[hash], self._next[self._places.pop(hash)]
        for block in change.stored:
            place = block.parent, block.tokens.tobytes()
            self._next[place] = block.hash
            self._places[block.hash] = place
            self._holders.setdefault(block.hash, set()).add(worker)

    def _longest(self, prompt: array[int]) -> set[int]:
        """Those that hold the most blocks from the prompt's beginning on."""
        best, at = set[int](), None
        for start in range(0, len(prompt) - BLOCK + 1, BLOCK):
            at = self._next.get((at, prompt[start : start + BLOCK].tobytes()))
            holders = set[int]() if at is None else self._holders[at]
            holders = holders & best if start else holders
            if not holders:
                break
            best = holders
        return best


def spills(load: int, running: Sequence[int]) -> bool:
    """Whether a worker is so much busier than the mean that its prefix does not count."""
    mean = sum(running) / len(running)
    margin = min(SPILL_REQUESTS, max(SPILL_REQUESTS_MIN, 2 * mean**0.5))
    return load > SPILL_RATIO * mean and load > mean + margin


def _place(what: str, number: int) -> int:
    digest = blake2b(f"{what}#{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest)


ROUTERS: dict[str, Callable[[int, Random], Router]] = {
    "random": RandomRouter,
    "hash": RingRouter,
    "events": EventRouter,
}

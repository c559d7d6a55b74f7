"""Whether somebody else computed while a contestant was measured, and measuring again if so.

- Foreign is the CPU time of the whole machine less that of this process and of all that it has
  started, contestants and a deliberate neighbour alike, as a share of all cores.
- One alternation measures every side once, in turning order. One with a disturbed turn is measured
  again, `TRIES` times in all; the least disturbed counts, marked if even that was disturbed.
- Where the system does not tell, nothing counts as disturbed, and the share is NaN.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from bench.measure import alternated
from bench.peers.processes import CpuReading, read_cpu

FOREIGN_SHARE_MAX = 0.05
TRIES = 3
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Alternation(Generic[_T]):
    """One value of each side. foreign: the largest share of others during one of its turns."""

    values: Mapping[str, _T]
    foreign: float
    tries: int = 1

    @property
    def disturbed(self) -> bool:
        return self.foreign > FOREIGN_SHARE_MAX  # NaN is not


class Watch:
    """CPU share of strangers between `begin` and `end`. root: of the tree that are none."""

    def __init__(self, cores: int, root: int | None = None) -> None:
        self._cores, self._root = cores, os.getpid() if root is None else root
        self._began: tuple[float, CpuReading | None] = (0.0, None)

    def begin(self) -> None:
        self._began = (time.perf_counter(), read_cpu())

    def end(self) -> float:
        """NaN where nothing is known."""
        before, after = self._began[1], read_cpu()
        if before is None or after is None:
            return math.nan
        span_s = time.perf_counter() - self._began[0]
        return foreign_share(before, after, self._root, span_s * self._cores)


def foreign_share(before: CpuReading, after: CpuReading, root: int, available_s: float) -> float:
    """CPU of everybody less that of a tree, of what there was; never below zero."""
    own = after.of_tree(root) - before.of_tree(root)
    return max(0.0, after.busy_s - before.busy_s - own) / available_s


async def alternate(
    sides: Sequence[str],
    run: int,
    turn: Callable[[str, int], Awaitable[_T]],
    watch: Watch,
    again: Callable[[], bool] = lambda: True,
) -> Alternation[_T]:
    """turn: measures a side; its number is another in every try, for fresh prompts.

    again: whether there is time for another try.
    """
    best: Alternation[_T] | None = None
    for attempt in range(TRIES):
        values, shares = {}, []
        for side in alternated(sides, run):
            watch.begin()
            values[side] = await turn(side, TRIES * run + attempt)
            shares.append(watch.end())
        foreign = max((s for s in shares if not math.isnan(s)), default=math.nan)
        if best is None or foreign < best.foreign:
            best = Alternation(values, foreign, attempt + 1)
        if not best.disturbed or not again():
            break
    assert best is not None
    return best

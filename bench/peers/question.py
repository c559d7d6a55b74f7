"""What every question is given: a pair, its contestants at work, alternations; and rows of it all.

- All contestants of a question run at once and take turns; who waits computes nothing.
- A question's time is bounded: when it is over nothing is measured again, what was disturbed stays
  marked, and the run that is going on is the last.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial

from bench.measure import BenchError, Figure
from bench.peers.contestants import Contestant, Running, naming, started
from bench.peers.disturbance import Alternation, Watch, alternate
from bench.peers.pairs import WrittenPair
from bench.peers.rows import MeasuredRow

QUESTION_S_MAX = 45 * 60.0
NATURAL_TOKENS_MAX = 160  # never reached: replies end by themselves

# A contestant's measures of one turn, by name.
Measures = Mapping[str, float]
# Measures a side; the number is another in every try.
Take = Callable[[str, int], Awaitable[Measures]]


@dataclass(slots=True)
class Question:
    """One question on one pair. cores: that the machine has for all. blas: seen in contestants."""

    name: str
    pair: WrittenPair
    contestants: Sequence[Contestant]
    runs: int
    quick: bool
    cores: int
    blas: set[str] = field(default_factory=set)
    ready_s: dict[str, float] = field(default_factory=dict)
    deadline: float = field(init=False)

    def __post_init__(self) -> None:
        self.deadline = time.monotonic() + QUESTION_S_MAX

    def goes_on(self) -> bool:
        """Whether there is time to measure something again; a quick run has none."""
        return not self.quick and time.monotonic() < self.deadline

    async def start(self, stack: AsyncExitStack, contestant: Contestant) -> Running:
        """It ends with the stack. Raises BenchError."""
        running = await stack.enter_async_context(started(contestant, self.pair))
        self.blas.add(running.blas)
        self.ready_s[contestant.name] = running.ready_s
        return running

    async def start_all(self, stack: AsyncExitStack) -> dict[str, Running]:
        """By name, one after another: who starts shall not be disturbed by the others."""
        return {c.name: await self.start(stack, c) for c in self.contestants}

    async def alternations(
        self, sides: Sequence[str], turn: Take, what: str
    ) -> list[Alternation[Measures]]:
        """`runs` of them, fewer where time is over before."""
        return (await self.rounds({what: (sides, turn)}))[what]

    async def rounds(
        self, parts: Mapping[str, tuple[Sequence[str], Take]]
    ) -> dict[str, list[Alternation[Measures]]]:
        """Of each part its alternations, as many of one as of another.

        Parts take turns within a run, so that they are compared within a short time.
        """
        watch = Watch(self.cores)

        async def named(turn: Take, side: str, number: int) -> Measures:
            with naming(side):
                return await turn(side, number)

        found: dict[str, list[Alternation[Measures]]] = {what: [] for what in parts}
        for run in range(self.runs):
            for what, (sides, turn) in parts.items():
                found[what].append(
                    await alternate(sides, run, partial(named, turn), watch, self.goes_on)
                )
                self.say(f"{what}, run {run + 1}: {told(found[what][-1])}")
            if time.monotonic() >= self.deadline:
                break
        return found

    def say(self, text: str) -> None:
        print(f"  {self.pair.plan.name}: {text}", flush=True)


def told(alternation: Alternation[Measures]) -> str:
    """The first measure of each side, and who disturbed."""
    first = [f"{name} {next(iter(m.values())):.3g}" for name, m in alternation.values.items()]
    marked = ", disturbed" if alternation.disturbed else ""
    return f"{', '.join(sorted(first))} (others {alternation.foreign:.0%}{marked})"


def rows_of(
    alternations: Sequence[Alternation[Measures]],
    units: Mapping[str, str],
    clients: int,
    summed: Sequence[str] = (),
) -> list[MeasuredRow]:
    """A row for each side and measure of `units`; `summed` measures become details of all."""
    disturbed = sum(a.disturbed for a in alternations)
    rows = []
    for side in alternations[0].values:
        turns = [a.values[side] for a in alternations]
        details = {
            name: sum(turn[name] for turn in turns)
            for name in summed
            if all(name in turn for turn in turns)
        }
        rows += [
            MeasuredRow(
                side, measure, unit, clients, tuple(t[measure] for t in turns), details, disturbed
            )
            for measure, unit in units.items()
            if all(measure in turn for turn in turns)
        ]
    return rows


@dataclass(frozen=True, slots=True)
class Answer:
    """What a question found out on one pair."""

    rows: tuple[MeasuredRow, ...]
    figures: tuple[Figure, ...]


def checked(values: Sequence[float], what: str) -> Sequence[float]:
    """Raises BenchError where there are none."""
    if not values:
        raise BenchError(f"{what}: nothing was measured")
    return values

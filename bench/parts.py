"""A step of the real runner against its own matmuls, and where the rest of it goes.

- In this process, without clients: so many rows with the same context decode greedily with so many
  drafts each, no prompt beside them. Each turn is the same step again: what was committed is taken
  back, so that no context grows.
- A part's time is what the step gets shorter by when a stand-in takes its place
  (bench/stand_ins.py). Parts are taken out one after another and stay out, so that what each is
  said to take and what is left add up to the step. What two parts share goes to the first of them.
- Of each: seconds in calls of the device, and of building the graph. On a CPU these lie one after
  the other. A GPU works while the host builds, so there only their sum says what a part costs.
- host: what the core takes of a step with as many rows and drafts, half of which hold. Between its
  calls a real step runs, or it would be twice as quick as in service: everything it needs
  would lie in the processor's caches. The event loop and its clients are not there: of these the
  benchmark `host` tells.
- Every time is the least of several turns of all variants in turn; a difference of two of them may
  be below zero where a part is small.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from bench.in_line import InLineStep, ReadyDevice, in_line, served_in_line
from bench.matmuls import MatmulWork, PairMatmuls, measure_least
from bench.measure import BenchError, Figure, Side
from bench.setup import Setup
from bench.stand_ins import STAND_INS, without
from sapwood.model.pair import Pair
from sapwood.model.runner import Runner
from sapwood.scheduler.events import Request
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.plan import Admit, DecodeRow, StepPlan
from sapwood.scheduler.sampling import Sampling

_ROW_COUNTS, _DEPTHS = (1, 4, 8, 16, 32), (0, 1, 3, 7)
_QUICK_ROW_COUNTS, _QUICK_DEPTHS = (1, 8), (0, 3)
# At least so many turns of each variant, and so many seconds of all of them: small steps get more.
_TURNS, _WARM_TURNS, _TURNS_S = 5, 1, 1.5
LIVE_TOKENS = 640  # a system prompt, a question and half of a reply
_HOST_PROMPT_TOKENS, _HOST_STEPS = 16, 16
_TOKEN = 100  # a plain one of the bundled tokenizer


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of submit and wait: in calls of the device, and the rest, which builds the graph."""

    device_s: float
    build_s: float

    @property
    def whole_s(self) -> float:
        return self.device_s + self.build_s

    def __sub__(self, other: StepTime) -> StepTime:
        return StepTime(self.device_s - other.device_s, self.build_s - other.build_s)


@dataclass(frozen=True, slots=True)
class Cell:
    """What is measured together: so many rows with so many drafts each."""

    rows: int
    depth: int

    @property
    def name(self) -> str:
        return f"{self.rows}x{self.depth}"

    @property
    def parts(self) -> list[str]:
        """What is taken out, in this order."""
        return [part for part in STAND_INS if part != "draft" or self.depth]

    @property
    def target(self) -> MatmulWork:
        """Matmuls of the target."""
        return MatmulWork.of_round(self.rows, self.depth).target

    @property
    def drafter(self) -> MatmulWork:
        """Those of the drafter; none at depth 0."""
        return MatmulWork.of_round(self.rows, self.depth).drafter


def parts_of(parts: Sequence[str], times: Sequence[StepTime]) -> dict[str, StepTime]:
    """Each part's own, and "rest", what is left. times[i]: the step's without its first i parts."""
    pairs = zip(parts, times, times[1:], strict=False)
    return {part: before - after for part, before, after in pairs} | {"rest": times[-1]}


def account(
    found: Mapping[str, StepTime], target_s: float, drafter_s: float, host_s: float
) -> dict[str, float]:
    """Seconds by name, which add up to `step`. Of parts that hold matmuls: what is beyond these.

    build: of all parts together; what it is made of is in `build_of`.
    """
    device = {part: time.device_s for part, time in found.items()}
    device["rest"] -= target_s
    if "draft" in device:
        device["draft"] -= drafter_s
    shares = {"target_matmuls": target_s, "drafter_matmuls": drafter_s, **device}
    shares |= {"build": sum(time.build_s for time in found.values()), "host": host_s}
    return shares | {"step": sum(shares.values())}


def build_of(found: Mapping[str, StepTime]) -> dict[str, float]:
    """Seconds of building each part of the graph."""
    return {f"build_{part}": time.build_s for part, time in found.items()}


class RepeatedStep:
    """A decode step that can be run again and again: rows of a runner, at the same place."""

    def __init__(self, runner: Runner, cell: Cell, context_tokens: int) -> None:
        self._runner, self._context = runner, context_tokens
        slots, room = range(cell.rows), context_tokens + cell.depth + 1
        admits = tuple(Admit(slot, 0, (), Sampling(), room) for slot in slots)
        runner.wait(runner.submit(StepPlan(1, admits=admits)))
        for slot in slots:
            # K/V that nobody computed: attention takes as long over zeros.
            runner.caches.reserve(slot, room)
            runner.caches.commit(slot, context_tokens)
        rows = (DecodeRow(slot, context_tokens, _TOKEN, cell.depth, 1) for slot in slots)
        self.plan = StepPlan(2, decodes=tuple(rows))

    def turn(self) -> StepTime:
        runner = self._runner
        device_s, began = runner.device_s, time.perf_counter()
        runner.wait(runner.submit(self.plan))
        seconds, device_s = time.perf_counter() - began, runner.device_s - device_s
        for row in self.plan.decodes:
            runner.caches.commit(row.slot, self._context)
        return StepTime(device_s, seconds - device_s)

    def close(self) -> None:
        """Free the rows' slots."""
        releases = tuple(row.slot for row in self.plan.decodes)
        self._runner.wait(self._runner.submit(StepPlan(3, releases=releases)))


def least_times(
    runner: Runner, cell: Cell, context_tokens: int, turns: int = _TURNS, turns_s: float = _TURNS_S
) -> list[StepTime]:
    """Of the whole step, and without the first of its parts, the first two, and so on."""
    step = RepeatedStep(runner, cell, context_tokens)
    variants = [cell.parts[:count] for count in range(len(cell.parts) + 1)]
    found: list[list[StepTime]] = [[] for _ in variants]
    gc.collect()
    until = time.perf_counter() + turns_s
    while len(found[-1]) < _WARM_TURNS + turns or time.perf_counter() < until:
        for times, parts in zip(found, variants, strict=True):
            with without(runner, parts):
                times.append(step.turn())
    step.close()
    return [min(times[_WARM_TURNS:], key=lambda time: time.whole_s) for times in found]


def host_seconds(pair: Pair, runner: Runner, cell: Cell, context_tokens: int) -> float:
    """The least that the core takes of a step in which all rows decode and nobody comes or goes."""
    prompt, tokens = (_TOKEN,) * _HOST_PROMPT_TOKENS, (cell.depth // 2 + 1) * _HOST_STEPS
    requests = [
        Request(
            id, b"parts", prompt, tokens, Sampling(), ignore_eos=True, depth=cell.depth,
            cache_bypass=True, store_reply=False,
        )
        for id in range(cell.rows)
    ]  # fmt: skip
    repeated, steps = RepeatedStep(runner, cell, context_tokens), list[InLineStep]()
    with in_line(pair) as loaded:
        ready = ReadyDevice(_TOKEN, lambda plan: _is_cell(plan, cell) and repeated.turn())
        served_in_line(replace(loaded, runner=ready), requests, steps.append)
    repeated.close()
    full = [step for step in steps if not step.moves and _is_cell(step.plan, cell)]
    if len(full) < _TURNS:
        raise BenchError(f"{len(full)} steps had {cell.rows} decoding rows and nothing else")
    return min(step.host_s for step in full)


def _is_cell(plan: StepPlan, cell: Cell) -> bool:
    depths = [row.depth for row in plan.decodes]
    return not plan.prefills and depths == [cell.depth] * cell.rows


@dataclass(slots=True)
class _Found:
    """Of one cell: the least time of each variant so far, and the step of every run."""

    times: list[StepTime]
    host_s: float
    steps_s: list[float]

    def add(self, times: list[StepTime], host_s: float) -> None:
        pairs = zip(self.times, times, strict=True)
        self.times = [min(pair, key=lambda time: time.whole_s) for pair in pairs]
        self.host_s = min(self.host_s, host_s)
        self.steps_s.append(times[0].whole_s + host_s)


def measure(setup: Setup) -> list[Figure]:
    pair, limits = setup.load_given_pair(), Limits()
    matmuls, found = PairMatmuls(pair), dict[Cell, _Found]()
    context = min(LIVE_TOKENS, pair.target_config.text.context_tokens_max // 2)
    for run in range(setup.runs):
        runner = Runner(pair, limits.slots_max, limits.draft_depth_max)
        for cell in cells(pair, setup.quick):
            times = least_times(runner, cell, context)
            host_s = host_seconds(pair, runner, cell, context)
            measure_least(matmuls, [cell.target, cell.drafter], _TURNS, _TURNS_S / 4)
            known = found.setdefault(cell, _Found(times, host_s, []))
            known.add(times, host_s)
            setup.say(f"run {run + 1}: {cell.name}: {1e3 * known.steps_s[-1]:.1f} ms")
        runner.close()
    figures = [_figure(cell, known, matmuls) for cell, known in found.items()]
    for figure in figures:
        setup.say(f"{figure.name}: {_story(figure.details)}")
    return figures


def cells(pair: Pair, quick: bool) -> Iterator[Cell]:
    """Without a drafter those of depth 0 alone."""
    depths = _QUICK_DEPTHS if quick else _DEPTHS
    for rows in _QUICK_ROW_COUNTS if quick else _ROW_COUNTS:
        for depth in depths if pair.assistant is not None else (0,):
            yield Cell(rows, depth)


def _figure(cell: Cell, known: _Found, matmuls: PairMatmuls) -> Figure:
    target_s, drafter_s = (matmuls.least_s[work] for work in (cell.target, cell.drafter))
    found = parts_of(cell.parts, known.times)
    shares = account(found, target_s, drafter_s, known.host_s) | build_of(found)
    own = Side("its own matmuls", "s", (target_s + drafter_s,) * len(known.steps_s))
    return Figure(
        f"parts/{cell.name}",
        f"rows x depth {cell.name}: a step ÷ its own matmuls",
        Side("step", "s", tuple(known.steps_s)),
        own,
        details={f"{name}_s": seconds for name, seconds in shares.items()},
    )


def _story(details: Mapping[str, float]) -> str:
    shown = {name.removesuffix("_s"): 1e3 * seconds for name, seconds in details.items()}
    return ", ".join(
        f"{name} {ms:.2f}" for name, ms in shown.items() if not name.startswith("build_")
    )

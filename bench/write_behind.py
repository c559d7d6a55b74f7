"""What a disk tier costs while nothing is found on it: steps beside its writing, and starts.

- In this process, core, runner and the port to the disk in line: a prompt is read and is due then,
  and rows of others decode at depth 0 while it is written, a block after every fourth step. Beside
  it the same without a folder. The heavy pair: there weights decide what a step takes.
- Both sides' cores and runners stand side by side around the one pair and take turns within a run,
  a few rounds of PAGE_OUT_STEPS steps each: machines drift by more than is looked for. A round
  holds one block's copy, and what the disk's thread does beside it. The first of a turn counts for
  none: the other side's last block may still be written in it. A run is worth the median round;
  steps in which somebody comes, goes or is read count as none.
- cpu: the same in processor seconds of this process, the disk's thread included: what others take
  of the machine makes them hardly longer.
- start: from a daemon's first instruction to its ready file, with a folder as the turn's own daemon
  left it ÷ without any.
- Who else computed is in the details, as a share of all cores, and marks what it disturbed.
"""

from __future__ import annotations

import itertools
import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.disk_hits import until_written
from bench.in_line import InLineDisk, InLineStep, in_line, served_in_line, stepped_in_line
from bench.measure import BenchError, Figure, Side, alternated, at_most
from bench.peers.disturbance import FOREIGN_SHARE_MAX, Watch
from bench.peers.pairs import WrittenPair, pair_plans
from bench.setup import Setup
from sapwood import Client
from sapwood.cache.prefix.catalogue import Kind
from sapwood.cache.prefix.snapshot import Payload
from sapwood.daemon import blas
from sapwood.daemon.demo.process import serve_command
from sapwood.daemon.engine.disk_port import PAGE_OUT_STEPS, DevicePager
from sapwood.daemon.engine.loaded import Loaded
from sapwood.model.checkpoint.locate import locate
from sapwood.model.pair import Pair, load_pair
from sapwood.scheduler.disk import PageOut
from sapwood.scheduler.events import Clear, Request
from sapwood.scheduler.sampling import Sampling

BEHIND_ROWS, _ROW_TOKENS = 4, 48
_TOKENS, _QUICK_TOKENS = 3900, 900
_TURNS, _QUICK_TURNS = 6, 2
_TURN_ROUNDS = 4  # the first of which counts for none
_ROOT = b"bench"


@dataclass(frozen=True, slots=True)
class StepTurn:
    """One side's: a step in seconds and in processor seconds; blocks that were copied in them.

    foreign: the share of all cores that others took.
    """

    step_s: float
    cpu_s: float
    blocks: int
    steps: int
    foreign: float


@dataclass
class CountingPager:
    """A pager that remembers what it copied."""

    pager: DevicePager
    copied: list[int] = field(default_factory=list)  # bytes of each block

    def copy_out(self, order: PageOut) -> bytes:
        kv = self.pager.copy_out(order)
        self.copied.append(len(kv))
        return kv

    def paged_in(self, start: int, end: int, kv: Mapping[Kind, Sequence[memoryview]]) -> Payload:
        return self.pager.paged_in(start, end, kv)


@dataclass
class InLineSide:
    """Core and runner of one side, and what writes behind them; None without a folder."""

    loaded: Loaded
    disk: InLineDisk | None = None
    pager: CountingPager | None = None
    rounds: list[list[InLineStep]] = field(default_factory=list)  # of the run that goes on
    blocks: int = 0  # that were copied in them
    turns: list[StepTurn] = field(default_factory=list)

    def play(self, steps: Iterator[InLineStep]) -> None:
        """A turn's rounds."""
        for round in range(_TURN_ROUNDS):
            before = self._copied
            own = list(itertools.islice(steps, PAGE_OUT_STEPS))
            if round:
                self.rounds.append(own)
                self.blocks += self._copied - before

    def end(self, foreign: float) -> StepTurn:
        """What the run was. Raises BenchError where it says nothing."""
        turn = turn_of(self.rounds, self.blocks, foreign, writes=self.pager is not None)
        self.rounds, self.blocks = [], 0
        self.turns.append(turn)
        return turn

    @property
    def _copied(self) -> int:
        return 0 if self.pager is None else len(self.pager.copied)

    def side(self, name: str, of: str) -> Side:
        return Side(name, "s", tuple(getattr(turn, of) for turn in self.turns))


def measure(setup: Setup) -> list[Figure]:
    pair = pair_plans()["bundled" if setup.quick else "heavy"].write(setup.folder)
    return [*_steps(setup, pair), _starts(setup, pair)]


def _steps(setup: Setup, written: WrittenPair) -> list[Figure]:
    setup.blas.add(blas.loaded(os.getpid()))
    pair = load_pair(*locate(str(written.target), "none"))
    ids = itertools.count(1)
    with _without(pair) as without, _behind(pair) as behind:
        sides = {"behind": behind, "without": without}
        for run in range(-1, setup.runs):  # the first one warms
            ordered = alternated(list(sides.items()), run)
            foreign = _run(setup, [side for _, side in ordered], ids)
            for name, side in ordered:
                turn = side.end(foreign)
                if run >= 0:
                    setup.say(f"run {run + 1}: {name}: {turn}")
        for side in sides.values():
            del side.turns[0]
    return behind_figures(behind, without)


@contextmanager
def _without(pair: Pair) -> Iterator[InLineSide]:
    with in_line(pair) as loaded:
        yield InLineSide(loaded)


@contextmanager
def _behind(pair: Pair) -> Iterator[InLineSide]:
    with (
        # What is being written when it closes may still come.
        tempfile.TemporaryDirectory(
            "", "sapwood-bench-disk-", ignore_cleanup_errors=True
        ) as folder,
        in_line(pair, cache_dir=Path(folder, "cache")) as loaded,
    ):
        assert loaded.pager is not None, "a folder, and nothing that copies"
        pager = CountingPager(loaded.pager)
        disk = InLineDisk(replace(loaded, pager=pager))
        try:
            yield InLineSide(loaded, disk, pager)
        finally:
            disk.close()


def _run(setup: Setup, sides: Sequence[InLineSide], ids: Iterator[int]) -> float:
    """Each side reads a prompt, and its rows decode in turns with the other's, while what is due is
    written. Returns the share of all cores that others took. Raises BenchError.
    """
    tokens, turns = (_QUICK_TOKENS, _QUICK_TURNS) if setup.quick else (_TOKENS, _TURNS)
    steps_max = (turns * _TURN_ROUNDS + 2) * PAGE_OUT_STEPS
    decoding = [_decoding(setup, side, ids, tokens, steps_max) for side in sides]
    watch = Watch(os.cpu_count() or 1)
    watch.begin()
    for _ in range(turns):
        for side, steps in zip(sides, decoding, strict=True):
            side.play(steps)
    foreign = watch.end()
    for side, steps in zip(sides, decoding, strict=True):
        for _ in steps:
            pass
        side.loaded.core.handle(Clear(next(ids)), time.perf_counter())  # the next begins as this
    return foreign


def _decoding(
    setup: Setup, side: InLineSide, ids: Iterator[int], tokens: int, steps_max: int
) -> Iterator[InLineStep]:
    """Steps of all rows and nothing else, behind a prompt that has been read and is due."""
    prompt = Request(next(ids), _ROOT, tuple(setup.prompt(tokens)), 1, Sampling(), depth=0)
    served_in_line(side.loaded, [prompt], disk=side.disk)
    rows = [
        Request(
            next(ids), _ROOT, tuple(setup.prompt(_ROW_TOKENS)), steps_max,
            Sampling(), ignore_eos=True, depth=0, cache_bypass=True,
        )
        for _ in range(BEHIND_ROWS)
    ]  # fmt: skip
    for step in stepped_in_line(side.loaded, rows, side.disk):
        if len(step.plan.decodes) == BEHIND_ROWS and not step.moves and not step.plan.prefills:
            yield step


def turn_of(
    rounds: Sequence[Sequence[InLineStep]], blocks: int, foreign: float, *, writes: bool
) -> StepTurn:
    """Of rounds with all rows in them, in order. Raises BenchError where they say nothing."""
    if any(len(each) < PAGE_OUT_STEPS for each in rounds):
        raise BenchError("the rows ended before their last round")
    if writes and blocks < len(rounds) / 2:
        raise BenchError(f"only {blocks} blocks were copied in {len(rounds)} rounds of steps")
    seconds = [statistics.fmean(step.run_s + step.host_s for step in each) for each in rounds]
    cpu = [statistics.fmean(step.cpu_s for step in each) for each in rounds]
    steps = len(rounds) * PAGE_OUT_STEPS
    return StepTurn(statistics.median(seconds), statistics.median(cpu), blocks, steps, foreign)


def behind_figures(behind: InLineSide, without: InLineSide) -> list[Figure]:
    turns = [*behind.turns, *without.turns]
    known = [turn.foreign for turn in turns if not math.isnan(turn.foreign)]
    details = {
        "blocks": statistics.median(float(turn.blocks) for turn in behind.turns),
        "block_bytes": float(statistics.median(behind.pager.copied)) if behind.pager else 0.0,
        "steps": statistics.median(float(turn.steps) for turn in turns),
    } | ({"foreign_share_most": max(known)} if known else {})
    disturbed = any(share > FOREIGN_SHARE_MAX for share in known)
    said = f"a decode step of {BEHIND_ROWS} rows"
    return [
        Figure(
            "write_behind/step", f"{said} while blocks are written behind ÷ without a folder",
            behind.side("behind", "step_s"), without.side("without", "step_s"),
            at_most(1.03), details, disturbed,
        ),
        Figure(
            "write_behind/step_cpu", f"{said}, processor time of all threads: behind ÷ without",
            behind.side("behind", "cpu_s"), without.side("without", "cpu_s"), None, details,
        ),
    ]  # fmt: skip


def _starts(setup: Setup, pair: WrittenPair) -> Figure:
    """From the first instruction to the ready file, in turn, on a folder that holds a prompt."""
    flags = ["--model", str(pair.target), "--draft", "none"]
    found: dict[str, list[float]] = {"folder": [], "none": []}
    watch, shares = Watch(os.cpu_count() or 1), list[float]()
    with tempfile.TemporaryDirectory(prefix="sapwood-bench-disk-") as folder:
        cached = [*flags, "--cache-dir", f"{folder}/cache"]
        with setup.daemon(serve_command(*cached)) as daemon, Client(daemon.address) as client:
            tokens = _QUICK_TOKENS if setup.quick else _TOKENS
            client.generate(setup.prompt(tokens), max_tokens=1).collect()
            until_written(client)
        for run in range(setup.runs):
            for name, given in alternated([("folder", cached), ("none", flags)], run):
                watch.begin()
                began = time.perf_counter()
                with setup.daemon(serve_command(*given)):
                    found[name].append(time.perf_counter() - began)
                    shares.append(watch.end())
            shown = ", ".join(f"{name} {seconds[-1]:.2f} s" for name, seconds in found.items())
            setup.say(f"run {run + 1}: ready after: {shown}")
    known = [share for share in shares if not math.isnan(share)]
    return Figure(
        "write_behind/start",
        "from the start to ready: with a cache folder that holds a prompt ÷ without a folder",
        Side("folder", "s", tuple(found["folder"])),
        Side("none", "s", tuple(found["none"])),
        at_most(1.1),
        {"foreign_share_most": max(known)} if known else {},
        any(share > FOREIGN_SHARE_MAX for share in known),
    )

"""`make bench ARGS="peers [QUESTION ...]"`: measure, write a record a pair, join all that is there.

- A question on a pair is a run of its own, at most 45 minutes; none named means all, hours.
- A full run writes below docs/bench/peers, a quick one or one of other runs below build/bench.
- Exit codes as of `python -m bench`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio

from bench.flags import flag_count, flag_one_of
from bench.machine import ROOT
from bench.measure import BenchError
from bench.peers.contestants import contestants
from bench.peers.environments import BUILD
from bench.peers.first_text import ask_first_text
from bench.peers.footprint import ask_footprint
from bench.peers.gaps import ask_gaps
from bench.peers.lengths import ask_lengths
from bench.peers.pages import write_pages
from bench.peers.pairs import pair_plans
from bench.peers.question import Answer, Question
from bench.peers.records import join, read_records, record, write_record
from bench.peers.schedule import ask_schedule
from bench.peers.throughput import ask_throughput
from bench.peers.turns import ask_turns
from bench.report import BenchRun, show

ALL, OURS = ("ours", "depth 0", "mlx_lm", "mlx_vlm", "smg"), ("ours", "depth 0")
# Where only the drafter is another, who drafts is measured again, and what drafts are worth.
DRAFTER_MATTERS = ("ours", "depth 0", "mlx_vlm")
PEERS_RUNS, PEERS_QUICK_RUNS = 5, 1


@dataclass(frozen=True, slots=True)
class Job:
    """One question. pairs: that it is asked of, with who takes part. quick_pairs: of `--quick`."""

    ask: Callable[[Question], Awaitable[Answer]]
    pairs: Mapping[str, tuple[str, ...]]
    quick_pairs: tuple[str, ...] = ("bundled",)
    runs: int = PEERS_RUNS


_TWO = {"bundled": ALL, "heavy": ALL}
JOBS = {
    "throughput": Job(
        ask_throughput,
        _TWO | dict.fromkeys(("balanced", "heavy-60", "heavy-30"), DRAFTER_MATTERS),
        ("bundled", "heavy"),
    ),
    "noisy": Job(
        partial(ask_throughput, neighbour=True),
        dict.fromkeys(("bundled", "heavy", "heavy-60", "heavy-30"), OURS),
    ),
    "first": Job(ask_first_text, _TWO),
    "lengths": Job(ask_lengths, dict.fromkeys(_TWO, ("ours", "mlx_lm"))),
    "gaps": Job(ask_gaps, _TWO, runs=3),
    "turns": Job(ask_turns, _TWO),
    "schedule": Job(
        ask_schedule,
        dict.fromkeys(("bundled", "heavy", "heavy-60", "heavy-30"), ("ours",)),
    ),
    "footprint": Job(ask_footprint, _TWO),
}


def main(argv: Sequence[str]) -> int:
    """Exit code."""
    arguments = _parser().parse_args(argv)
    whole = not arguments.quick and arguments.runs is None
    folder = ROOT / ("docs/bench/peers" if whole else "build/bench/peers")
    try:
        for name in arguments.questions or JOBS:
            for pair in arguments.pairs or _pairs(JOBS[name], arguments.quick):
                if pair in JOBS[name].pairs:
                    _run(name, pair, arguments, folder)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    for path in write_pages(join(read_records(folder), tuple(JOBS)), folder):
        print(path.relative_to(ROOT))
    return 0


def _pairs(job: Job, quick: bool) -> Sequence[str]:
    return job.quick_pairs if quick else tuple(job.pairs)


def _run(name: str, pair: str, arguments: argparse.Namespace, folder: Path) -> None:
    """Raises BenchError."""
    begun, job = BenchRun(arguments.quick), JOBS[name]
    taking_part = [contestants()[who] for who in job.pairs[pair]]
    for contestant in taking_part:
        if contestant.environment is not None:
            contestant.environment.make()
    written = pair_plans()[pair].write(BUILD / "pairs")
    runs = arguments.runs or (PEERS_QUICK_RUNS if arguments.quick else job.runs)
    print(f"{name}, {pair}, {runs} runs", flush=True)
    cores = begun.machine["cores"] or 1
    question = Question(name, written, taking_part, runs, arguments.quick, cores)
    answer = anyio.run(job.ask, question)
    report = begun.report(question.blas, answer.figures)
    show(report.figures)
    print(write_record(record(report, question, answer), folder).relative_to(ROOT))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench peers",
        description="Measure beside every peer; see docs/bench/peers.md.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "questions",
        nargs="*",
        metavar="QUESTION",
        type=flag_one_of(tuple(JOBS)),
        help=", ".join(JOBS),
    )
    add("--pair", action="append", dest="pairs", choices=list(pair_plans()), help="repeatable")
    add(
        "--runs",
        type=flag_count,
        metavar="N",
        help="alternations of each (default: 5, of gaps 3)",
    )
    add("--quick", action="store_true", help="little work, to see that it runs")
    return parser

"""`python -m bench [NAME ...]`: measure, print, write. `peers` is a command of its own.

- 0: measured, targets met or not: it is a report. 1: something could not be measured. 2: usage.
- A full run goes to docs/bench; a quick or partial one to build/bench, never over it.
- All contestants compute with one BLAS: an installed OpenBLAS is preloaded for this process, which
  starts itself anew for it, and so for the daemons it starts. Two different ones are an error.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from bench.flags import flag_count, flag_one_of
from bench.machine import ROOT
from bench.measure import BenchError, Figure
from bench.report import BenchReport, BenchRun, show, write_report
from bench.setup import Setup
from sapwood.daemon import blas
from sapwood.daemon.process.host_memory import keep_freed_memory

BENCHMARKS = ("prefix", "step", "host", "speculation", "company")
# Only where they are named: of whichever pair, by the hour; and without any, a look at the tree.
OF_A_PAIR = (
    "before",
    "ceiling",
    "depths",
    "memory",
    "on_disk",
    "parts",
    "shares",
    "strict",
    "structured",
)
BY_NAME = (*OF_A_PAIR, "fair", "k_eq_v", "overhead", "traces", "write_behind")
# Clients one after another take most of a whole run's time.
RUNS = {name: 3 if name == "company" else 5 for name in (*BENCHMARKS, *BY_NAME)}
QUICK_RUNS = 2
# A benchmark of its own, by hours: it has questions, pairs and environments.
BESIDE_PEERS = "peers"


def main(argv: Sequence[str]) -> int:
    if list(argv[:1]) == [BESIDE_PEERS]:
        _with_one_blas(argv)
        return int(import_module("bench.peers.command").main(argv[1:]))
    arguments = _parser().parse_args(argv)  # what is refused starts nothing anew
    _with_one_blas(argv)
    keep_freed_memory()  # as a daemon: some benchmarks compute in this process
    chosen = arguments.names or BENCHMARKS
    names = tuple(name for name in (*BENCHMARKS, *BY_NAME) if name in chosen)
    whole = names == BENCHMARKS and not arguments.quick
    try:
        report = run(names, arguments)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    show(report.figures)
    for path in write_report(report, ROOT / ("docs/bench" if whole else "build/bench")):
        print(path.relative_to(ROOT))
    return 0


def _with_one_blas(argv: Sequence[str]) -> None:
    """Start this process anew where an installed OpenBLAS is not preloaded yet."""
    environ = blas.environment(os.environ)
    if environ != dict(os.environ):
        os.execve(sys.executable, [sys.executable, "-m", "bench", *argv], environ)


def run(names: Sequence[str], arguments: argparse.Namespace) -> BenchReport:
    """Raises BenchError."""
    begun = BenchRun(arguments.quick)
    with tempfile.TemporaryDirectory(prefix="sapwood-bench-") as folder:
        setup = Setup(Path(folder), arguments.quick, arguments.seed)
        setup.model, setup.draft = arguments.model, arguments.draft
        figures: list[Figure] = []
        for name in names:
            setup.runs = arguments.runs or (QUICK_RUNS if arguments.quick else RUNS[name])
            print(f"{name}, {setup.runs} runs", flush=True)
            figures += import_module(f"bench.{name}").measure(setup)
    return begun.report(setup.blas, figures)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure ratios; see docs/bench.", allow_abbrev=False
    )
    add = parser.add_argument
    add(
        "names",
        type=flag_one_of((*BENCHMARKS, *BY_NAME)),
        nargs="*",
        metavar="NAME",
        help=f"of {', '.join(BENCHMARKS)} (default: all these), {', '.join(BY_NAME)}",
    )
    add(
        "--runs",
        type=flag_count,
        metavar="N",
        help="of each figure (default: 5, of the long 3)",
    )
    add("--quick", action="store_true", help="less work and fewer runs, to see that it runs")
    add("--model", metavar="PATH", help=f"of {' and '.join(OF_A_PAIR)} (default: the bundled pair)")
    add("--draft", metavar="PATH", help="its drafter, or none")
    add("--seed", type=int, default=0, metavar="N", help="of the prompts")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

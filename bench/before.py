"""A decode step of this build ÷ one of the commit before prefixes were held by reference.

- That commit is taken out of git into build/before and run by this environment's Python: what it
  depends on is the same versions. Its rows are a process's own; who is not asked computes nothing.
- Both sides are the rows of `memory`: greedy, without drafts, each with tokens of its own behind
  3,900 tokens, and the same step again and again. K/V is zeros.
- shared: all of them behind one prefix, which is held by reference. own: behind one each, which are
  copied into their rows as long as there is room. There a row holds all of its own either way.
- The sides alternate step by step; a run's value is its median step.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path

from bench.machine import ROOT
from bench.measure import BenchError, Figure, Side, at_most
from bench.memory import (
    OWN_TOKENS,
    Company,
    Layout,
    median_steps,
    prefix_tokens,
    row_counts,
    timed,
)
from bench.setup import Setup
from sapwood.model.checkpoint.locate import locate
from sapwood.model.pair import Pair

BEFORE = "2310315b158da26e7d8e35c6dbb43c58414c78ad"
_JUDGED_ROWS, _SHARED_MOST, _LEVEL = 16, 0.8, 1.0
_LAYOUTS: dict[str, Layout] = {"shared": "referred", "own": "copied"}

_Step = Callable[[], float]  # seconds


def taken_out(commit: str, folder: Path) -> Path:
    """That commit's tree, below `folder`. Raises BenchError where git does not have it."""
    tree = folder / commit
    if not tree.exists():
        command = ["git", "archive", commit]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
        if found.returncode:
            said = found.stderr.decode(errors="replace").strip()
            raise BenchError(f"{commit[:12]} is wanted, of a clone that is not shallow: {said}")
        part = folder / f"{commit}.part"
        with tarfile.open(fileobj=BytesIO(found.stdout)) as archive:
            archive.extractall(part, filter="data")
        part.rename(tree)  # whole, or not there
    return tree


@contextmanager
def rows_before(tree: Path, pair_flags: Sequence[str], rows: int, prefix: int) -> Iterator[_Step]:
    """So many rows of that tree's runner, in a process. Raises BenchError where it ends early."""
    numbers = map(str, (rows, prefix + OWN_TOKENS))
    script = Path(__file__).with_name("before_rows.py")
    with subprocess.Popen(
        [sys.executable, "-P", str(script), *numbers, *pair_flags],
        env={**os.environ, "PYTHONPATH": str(tree)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        asks, answers = process.stdin, process.stdout

        def step() -> float:
            try:
                print(file=asks, flush=True)
                return float(answers.readline())
            except (OSError, ValueError) as error:
                raise BenchError("the build before ended") from error

        try:
            yield step
        finally:
            process.kill()


def _flags(setup: Setup) -> list[str]:
    """The same files for both builds, the bundled pair's as well."""
    target, drafter = locate(setup.model, setup.draft)
    return ["--model", str(target.path), "--draft", str(drafter.path if drafter else "none")]


def measure(setup: Setup) -> list[Figure]:
    pair, tree = setup.load_given_pair(), taken_out(BEFORE, ROOT / "build/before")
    figures: list[Figure] = []
    for rows in row_counts(setup):
        steps_s: dict[str, list[float]] = {name: [] for name in (*_LAYOUTS, "before")}
        for run in range(setup.runs):
            for name, seconds in _run(setup, pair, tree, rows).items():
                steps_s[name].append(seconds)
            shown = ", ".join(f"{name} {1e3 * v[-1]:.1f} ms" for name, v in steps_s.items())
            setup.say(f"run {run + 1}: {rows} rows: {shown}")
        figures += before_figures(rows, steps_s, _LEVEL if setup.model else _SHARED_MOST)
    return figures


def _run(setup: Setup, pair: Pair, tree: Path, rows: int) -> dict[str, float]:
    """Seconds of each side's median step."""
    prefix, sides = prefix_tokens(pair), dict[str, _Step]()
    with ExitStack() as stack:
        for name, layout in _LAYOUTS.items():
            company = Company(pair, layout, rows, prefix)
            stack.callback(company.runner.close)
            sides[name] = partial(timed, company)
        before = rows_before(tree, _flags(setup), rows, prefix)
        sides["before"] = stack.enter_context(before)
        return median_steps(sides, setup.quick)


def before_figures(rows: int, steps_s: dict[str, list[float]], shared_most: float) -> list[Figure]:
    sides = {name: Side(name, "s", tuple(seconds)) for name, seconds in steps_s.items()}
    said = {
        "shared": ("behind one prefix", shared_most),
        "own": ("behind a prefix each", _LEVEL),
    }
    return [
        Figure(
            f"before/{name}/{rows}",
            f"{rows} rows {where}: a step ÷ the same before prefixes were held by reference",
            sides[name],
            sides["before"],
            at_most(bound) if rows == _JUDGED_ROWS else None,
        )
        for name, (where, bound) in said.items()
    ]

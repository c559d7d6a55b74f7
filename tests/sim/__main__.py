"""Simulates seeds and reports; replays one; shortens one that failed.

    python -m tests.sim run --seeds 1000 --from 0 --jobs 2 [--seconds 7200]
    python -m tests.sim replay SEED|FILE
    python -m tests.sim shrink SEED|FILE [--keep NAME]

`run` ends with 1 where anything failed, and prints seeds per hour, the transitions taken, the pairs
of faults that met, and what was never reached. `shrink --keep` writes regressions/NAME.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.sim import draw
from tests.sim.play import HERE, play
from tests.sim.report import run
from tests.sim.shrink import shrink
from tests.sim.story import Scenario


def named(what: str) -> Scenario:
    """A seed's scenario, or a file's."""
    return draw.scenario(int(what)) if what.isdigit() else Scenario.parse(Path(what).read_text())


def replay(what: str) -> int:
    _, violation = play(named(what))
    print(f"{violation.message}\n{violation.story}" if violation else "no violation")
    return 1 if violation else 0


def shorten(what: str, keep: str) -> int:
    scenario = named(what)
    _, violation = play(scenario)
    if violation is None:
        print("no violation")
        return 2
    short = shrink(scenario, violation)
    print(violation.message)
    print(short.dump())
    if keep:
        (HERE / "regressions" / f"{keep}.json").write_text(short.dump())
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("--seeds", type=int, default=1000)
    running.add_argument("--from", type=int, default=0, dest="first")
    running.add_argument("--seconds", type=float, default=float("inf"))
    running.add_argument("--jobs", type=int, default=2)
    commands.add_parser("replay").add_argument("what")
    shrinking = commands.add_parser("shrink")
    shrinking.add_argument("what")
    shrinking.add_argument("--keep", default="")
    given = parser.parse_args()
    if given.command == "run":
        return run(given.first, given.seeds, given.seconds, given.jobs)
    return replay(given.what) if given.command == "replay" else shorten(given.what, given.keep)


if __name__ == "__main__":
    sys.exit(main())

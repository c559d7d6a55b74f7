"""`python -m sapwood.model.demo.train`: from the text to a pair in Hugging Face format.

Each stage leaves its result in the work folder and is skipped where that is complete, so that a run
that was interrupted goes on where it was. measure.py and card.py then run in the project's own
environment.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sapwood.model.demo.train.corpus import prepare
from sapwood.model.demo.train.distil import distil
from sapwood.model.demo.train.export import export_drafter, export_target, write_reference
from sapwood.model.demo.train.learn import learn
from sapwood.model.demo.train.shape import DRAFTER_PLAN, TARGET_PLAN, Plan
from sapwood.model.demo.train.smoke import smoke
from sapwood.model.demo.train.work import in_processes


def make(work: Path, target: Plan, drafter: Plan, compiled: bool) -> None:
    pair = work / "pair"
    say("text")
    prepare(work, target.steps * target.rows, drafter.steps * drafter.rows)
    say("target")
    in_processes(learn, work, target, compiled)
    export_target(work, pair / "target")
    say("drafter")
    in_processes(distil, work, drafter, compiled)
    export_drafter(work, pair / "assistant")
    write_reference(work, pair / "target")
    say(f"done: {pair}")


def say(what: str) -> None:
    print(f"== {what}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sapwood.model.demo.train", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/train"), help="what is kept")
    parser.add_argument("--smoke", action="store_true", help="a tiny run and its checks, then end")
    args = parser.parse_args()
    if args.smoke:
        smoke(args.work / "smoke", make)
    else:
        make(args.work, TARGET_PLAN, DRAFTER_PLAN, compiled=True)


if __name__ == "__main__":
    main()

"""Rows of the runner of whichever build is on the path: a step for every line, its seconds back.

`python before_rows.py ROWS TOKENS [--model PATH] [--draft PATH]`, run by `before` with another
commit's tree on PYTHONPATH: nothing is used here that was not there then, and nothing of bench.
"""

from __future__ import annotations

import argparse
import sys
import time

from sapwood.daemon.process.host_memory import keep_freed_memory
from sapwood.model.checkpoint.locate import locate
from sapwood.model.pair import load_pair
from sapwood.model.runner import Runner
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.plan import Admit, DecodeRow, StepPlan
from sapwood.scheduler.sampling import Sampling

_TOKEN = 100  # a plain one of the bundled tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("rows", type=int)
    parser.add_argument("tokens", type=int)
    parser.add_argument("--model")
    parser.add_argument("--draft")
    given = parser.parse_args()
    keep_freed_memory()
    limits, slots, end = Limits(), range(given.rows), given.tokens
    pair = load_pair(*locate(given.model, given.draft))
    runner = Runner(pair, max(given.rows, limits.slots_max), limits.draft_depth_max)
    admits = tuple(Admit(slot, 0, (), Sampling(), end + 1) for slot in slots)
    runner.wait(runner.submit(StepPlan(1, admits=admits)))
    for slot in slots:
        runner.caches.reserve(slot, end)  # K/V that nobody computed
        runner.caches.commit(slot, end)
        runner.caches.settle()
    plan = StepPlan(2, decodes=tuple(DecodeRow(slot, end, _TOKEN, 0, 1) for slot in slots))
    for _ in sys.stdin:
        began = time.perf_counter()
        runner.wait(runner.submit(plan))
        for slot in slots:  # taken back
            runner.caches.commit(slot, end)
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()

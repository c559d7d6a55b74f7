"""Many seeds on several processes, and what is printed of them.

- Coverage counts what happened; what is declared here and never happened is printed by name.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import combinations_with_replacement
from multiprocessing import get_context
from typing import Any

from tests.sim.draw import scenario
from tests.sim.play import Seen, Violation, commit, play
from tests.sim.shrink import shrink

BATCH_SEEDS = 20
FAILURES_SHOWN = 5
ENDS = ("cancelled", "deadline", "failed")
EDGES = (
    ("QUEUED", "PREFILL", "admitted"),
    ("PREFILL", "DECODE", "first token"),
    ("PREFILL", "PARKED", "memory is short"),
    ("DECODE", "PARKED", "memory is short"),
    ("PREFILL", "PARKED", "the device had no memory"),
    ("DECODE", "PARKED", "the device had no memory"),
    ("PREFILL", "PARKED", "yields"),
    ("DECODE", "PARKED", "yields"),
    ("PARKED", "PREFILL", "resumed"),
    ("PREFILL", "DECODE", "as far as it was"),
    ("PREFILL", "DONE", "pinned"),
    *(("PARKED", "DONE", why) for why in ENDS),
    *(("QUEUED", "DONE", why) for why in (*ENDS, "rejected")),
    *(("PREFILL", "DONE", why) for why in ENDS),
    *(("DECODE", "DONE", why) for why in (*ENDS, "stop", "length", "stop_sequence")),
)
RARE_EDGES = {edge for edge in EDGES if edge[:2] == ("PARKED", "DONE")}
FAULTS = (
    "allocation", "cancelled", "cleared", "client_quota", "crowded", "damaged",
    "deadline_exceeded", "disk line", "disk lost", "disk page-in", "disk page-out", "disk read",
    "disk rename", "disk unlink", "disk write", "drain", "draining", "evicted", "internal", "jump",
    "kill", "lost step", "out_of_memory", "parked", "parked depth", "queue_full", "resumed",
    "session_busy", "slow device", "slow disk", "slow_reader", "taken over", "thinned", "unpinned",
)  # fmt: skip


def report(seed: int, violation: Violation) -> str:
    """What a failure prints: seed, commit, command, story, and the shortest that fails alike."""
    return (
        f"seed={seed} commit={commit()}\n{violation.message}\n{violation.story}\n"
        f"again: python -m tests.sim replay {seed}\n"
        f"keep:  python -m tests.sim shrink {seed} --keep NAME\n"
        f"{shrink(scenario(seed), violation).dump()}"
    )


def play_seed(seed: int) -> tuple[Seen, str]:
    """What was seen, and the report of what failed, "" for nothing."""
    seen, violation = play(scenario(seed))
    return seen, "" if violation is None else report(seed, violation)


def batch(first: int, count: int) -> tuple[Seen, list[str]]:
    """Some seeds, in a process of their own."""
    seen, failures = Seen(), []
    for seed in range(first, first + count):
        one, failure = play_seed(seed)
        seen.add(one)
        failures += [failure] if failure else []
    return seen, failures


def batches(first: int, seeds: int, seconds: float, jobs: int) -> Iterator[tuple[Seen, list[str]]]:
    """Batches of [first, first + seeds) as they are done; none begins after `seconds`."""
    ends = time.monotonic() + seconds
    starts = iter(range(first, first + seeds, BATCH_SEEDS))
    running: set[Future[tuple[Seen, list[str]]]] = set()
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        while True:
            while len(running) < 2 * jobs and time.monotonic() < ends:
                start = next(starts, None)
                if start is None:
                    break
                count = min(BATCH_SEEDS, first + seeds - start)
                running.add(pool.submit(batch, start, count))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (each.result() for each in done)


def run(first: int, seeds: int, seconds: float, jobs: int) -> int:
    began, seen, failed = time.monotonic(), Seen(), 0
    for part, failures in batches(first, seeds, seconds, jobs):
        seen.add(part)
        for failure in failures[: max(0, FAILURES_SHOWN - failed)]:
            print(failure, end="\n\n", flush=True)
        failed += len(failures)
    hours = (time.monotonic() - began) / 3600
    print(f"{seen.scenarios} seeds from {first}, {seen.steps} steps, {jobs} processes, {commit()}")
    print(f"{failed} violations; {seen.scenarios / hours:.0f} seeds an hour")
    _table("transitions", seen.edges, EDGES)
    met = tuple(combinations_with_replacement(FAULTS, 2))
    _table("faults that met", seen.pairs, met)
    return 1 if failed else 0


def _table(title: str, seen: Mapping[Any, int], known: Iterable[tuple[str, ...]]) -> None:
    """What happened, how often, and what of the listed did not."""
    known = list(known)
    print(f"\n{title}: {sum(each in seen for each in known)} of {len(known)}")
    for each, count in sorted(seen.items()):
        print(f"  {count:9}  {', '.join(each)}{'' if each in known else '  (not listed)'}")
    never = [each for each in known if each not in seen]
    for each in never:
        print(f"      never  {', '.join(each)}")

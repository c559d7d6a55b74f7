"""What the daemon's own choice of depths is worth: against every fixed depth, also disturbed.

- One daemon with the given pair, N clients, the questions of bench/speculation.py as bench/ceiling
  deals them out. A fixed depth is asked for by each request; auto is what the policy makes of it.
- The best fixed depth is the one whose median over the runs is the best: judged afterwards, so auto
  is held to something that nobody could have known. What it tries, and what it learns with, counts
  against it.
- *beside*: auto and depth 0 once more, while another process computes on one core without a pause.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import median

import anyio

from bench.ceiling import serve_questions
from bench.clients import Group, connected
from bench.measure import Figure, alternated, at_least
from bench.setup import Setup
from sapwood import AsyncClient
from sapwood.daemon.demo.process import serve_command
from sapwood.scheduler.limits import Limits

CONTEST_SIZES, QUICK_CONTEST_SIZES = (1, 4, 16), (1, 4)
FIXED, QUICK_FIXED = tuple(range(Limits().usual_depth_max + 1)), (0, 1, 3)


class DepthContest:
    """All that is measured of so many clients."""

    def __init__(self, clients: int, fixed: Sequence[int]) -> None:
        self.clients = clients
        self.auto = Group("auto", True, None)
        self.fixed = {depth: Group(f"depth {depth}", True, depth) for depth in fixed}
        self.beside = Group("auto beside another process", True, None), Group("depth 0", True, 0)

    @property
    def best(self) -> int:
        """The fixed depth with the best median."""
        rates = {depth: median(group.side.values) for depth, group in self.fixed.items()}
        return max(rates, key=lambda depth: rates[depth])

    def figures(self) -> list[Figure]:
        who = "1 client" if self.clients == 1 else f"{self.clients} clients"
        plain, best, name = self.fixed[0], self.fixed[self.best], f"depths/{self.clients}"
        counts = self.auto.acceptance() | {"best_depth": float(self.best)}
        medians = {f"depth_{d}_tokens_s": median(g.side.values) for d, g in self.fixed.items()}
        worse = "worse quartile"
        beside, beside_plain = self.beside
        return [
            Figure(
                f"{name}/plain", f"{who}: auto ÷ depth 0", self.auto.side, plain.side,
                at_least(0.98, worse), counts,
            ),
            Figure(
                f"{name}/best", f"{who}: auto ÷ the best fixed depth", self.auto.side, best.side,
                at_least(0.95, worse), counts | medians,
            ),
            Figure(
                f"{name}/beside", f"{who}: auto ÷ depth 0, another process on one core",
                beside.side, beside_plain.side, at_least(0.98, worse), beside.acceptance(),
            ),
        ]  # fmt: skip


def measure(setup: Setup) -> list[Figure]:
    with setup.daemon(serve_command(*setup.given_flags)) as daemon:
        return anyio.run(partial(_measure, daemon.address, setup))


async def _measure(address: str, setup: Setup) -> list[Figure]:
    companies = QUICK_CONTEST_SIZES if setup.quick else CONTEST_SIZES
    contests = [DepthContest(n, QUICK_FIXED if setup.quick else FIXED) for n in companies]
    async with connected(address, max(companies)) as clients:
        for contest in contests:  # warms the tree and the shapes
            await serve_questions(clients[: contest.clients], contest.auto)
        for run in range(setup.runs):
            for contest in alternated(contests, run):
                await _play(clients[: contest.clients], contest, run)
                auto, plain = contest.auto.served[-1], contest.fixed[0].served[-1]
                setup.say(
                    f"run {run + 1}: {contest.clients} clients: {auto.tokens_per_s:.0f} tokens/s, "
                    f"depth 0 {plain.tokens_per_s:.0f}"
                )
    return [figure for contest in contests for figure in contest.figures()]


async def _play(clients: Sequence[AsyncClient], contest: DepthContest, run: int) -> None:
    for group in alternated([*contest.fixed.values(), contest.auto], run):
        group.served.append(await serve_questions(clients, group))
    with another_process():
        for group in alternated(contest.beside, run):
            group.served.append(await serve_questions(clients, group))


@contextmanager
def another_process() -> Iterator[int]:
    """Computes on one core for as long; its pid."""
    process = multiprocessing.get_context("spawn").Process(target=_compute, daemon=True)
    process.start()
    try:
        assert process.pid is not None
        yield process.pid
    finally:
        process.kill()
        process.join()


def _compute() -> None:
    while True:
        pass

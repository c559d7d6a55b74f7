"""Tokens per second of all clients together, 1 to 32 of them, against every peer.

- Chats with one shared system prompt of 550 tokens and a fresh question each; greedy, natural ends.
  Each client asks one or more: of fewer replies than eight on a pair that is not widened, or two on
  one that is, a burst would be too short.
- Before the clock every contestant has served few, several and many clients once: prefix and depth
  policy are warm on all sides.
- With a neighbour: the same of ours alone, with and without drafts, while a process of another
  owner keeps one core busy.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from itertools import pairwise
from math import ceil

from bench.measure import Figure, Side
from bench.peers.contestants import Running, naming
from bench.peers.load import SameText, all_ask, load_measures
from bench.peers.prompts import chats
from bench.peers.question import NATURAL_TOKENS_MAX, Answer, Measures, Question, rows_of
from bench.peers.rows import PairRows, company, least, ratio

CLIENT_COUNTS, QUICK_COUNTS = (1, 2, 4, 8, 16, 32), (1, 4)
WARM_COUNTS = (1, 8, 32)
REPLIES_LEAST, HEAVY_REPLIES_LEAST = 8, 2  # of a burst; a reply takes a second, or five
QUICK_REPLY_TOKENS = 24
UNITS = {"tokens_per_s": "tokens/s", "first_text_s": "s"}
SUMMED = ("tokens", "replies", "equal_replies", "resets", "drafts", "accepted", "cached_tokens")
# The targets that docs/bench/peers.md explains, by number of clients.
HEAVY_OVER_BEST = {1: 2.2, 2: 2.5, 4: 3.5, 8: 2.8, 16: 2.3, 32: 1.7}
BUNDLED_OVER_MLX_LM = {1: 2.0, 4: 1.7, 8: 1.5, 16: 1.3, 32: 1.2}
PLAIN_OVER_MLX_LM, AUTO_OVER_PLAIN, DOUBLING = 1.0, 0.98, 0.97
PEERS = ("mlx_lm", "mlx_vlm", "smg")
_BUSY = "while True: pass"


async def ask_throughput(question: Question, neighbour: bool = False) -> Answer:
    """Raises BenchError."""
    rows = []
    async with AsyncExitStack() as stack:
        running = await question.start_all(stack)
        if neighbour:
            stack.enter_context(busy_core())
        plan, taking_part = question.pair.plan, question.contestants
        heavy = question.quick or plan.widening > 1
        turn = Burst(
            running,
            QUICK_REPLY_TOKENS if question.quick else NATURAL_TOKENS_MAX,
            HEAVY_REPLIES_LEAST if heavy else REPLIES_LEAST,
        )
        counts = QUICK_COUNTS if question.quick else CLIENT_COUNTS
        sides = {n: [c.name for c in taking_part if n in c.counts_on(plan)] for n in counts}
        for count in QUICK_COUNTS if question.quick else WARM_COUNTS:
            for side in sides[count]:
                with naming(side):
                    await turn.take(count, side, -1)
        parts = {company(n): (sides[n], partial(turn.take, n)) for n in counts}
        found = await question.rounds(parts)
        for count in counts:
            rows += rows_of(found[company(count)], UNITS, count, SUMMED)
    make = noisy_figures if neighbour else throughput_figures
    return Answer(tuple(rows), tuple(make(plan.name, plan.title, PairRows(rows))))


class Burst:
    """One burst of clients at a contestant, of at least so many replies."""

    def __init__(self, running: Mapping[str, Running], tokens_max: int, replies_least: int) -> None:
        self._running, self._tokens_max = running, tokens_max
        self._replies_least = replies_least
        self._same = SameText()
        self._skipped: dict[tuple[int, int], int] = {}
        self._asked = 0

    async def take(self, count: int, side: str, number: int) -> Measures:
        """number: -1 warms. All sides ask the same in a turn, and no two turns do."""
        each = ceil(self._replies_least / count)
        if (count, number) not in self._skipped:
            self._skipped[count, number] = self._asked
            self._asked += count * each
        flat = chats(count * each, self._skipped[count, number])
        asked = [flat[at * each : (at + 1) * each] for at in range(count)]
        heard = await all_ask(self._running[side], asked, self._tokens_max)
        replies = [h for of_client in heard for h in of_client]
        equal = self._same.equal((count, number), [h.text for h in replies])
        return load_measures(replies) | {"equal_replies": equal}


def throughput_figures(pair: str, title: str, rows: PairRows) -> Iterator[Figure]:
    """Of one pair, every number of clients that was measured."""
    for n in CLIENT_COUNTS:
        ours, plain, lm = (
            rows.find(name, "tokens_per_s", n) for name in ("ours", "depth 0", "mlx_lm")
        )
        best = rows.best(PEERS, "tokens_per_s", n) if lm else None  # no best of a chosen few
        place, head = f"throughput/{pair}", f"{title}, {company(n)}"
        over_best = HEAVY_OVER_BEST.get(n) if pair == "heavy" else None
        over_lm = BUNDLED_OVER_MLX_LM.get(n) if pair == "bundled" else None
        yield from ratio(
            f"{place}/best/{n}", f"{head}: ours ÷ best peer", ours, best, least(over_best)
        )
        yield from ratio(
            f"{place}/mlx_lm/{n}", f"{head}: ours ÷ mlx_lm.server", ours, lm, least(over_lm)
        )
        yield from ratio(
            f"{place}/plain/{n}",
            f"{head}: depth 0 ÷ mlx_lm.server",
            plain,
            lm,
            least(PLAIN_OVER_MLX_LM),
        )
        yield from ratio(
            f"{place}/auto/{n}", f"{head}: MTP auto ÷ depth 0", ours, plain, least(AUTO_OVER_PLAIN)
        )
    yield from doublings(pair, title, rows)


def doublings(pair: str, title: str, rows: PairRows) -> Iterator[Figure]:
    """Tokens/s after a doubling of clients ÷ before: the worst step of ours in each alternation."""
    measured = [rows.find("ours", "tokens_per_s", n) for n in CLIENT_COUNTS]
    steps = [(a, b) for a, b in pairwise(measured) if a and b]
    if not steps:
        return
    worst = [
        min(steps, key=lambda step: step[1].values[run] / step[0].values[run])
        for run in range(len(steps[0][0].values))
    ]
    after = tuple(b.values[run] for run, (_, b) in enumerate(worst))
    before = tuple(a.values[run] for run, (a, _) in enumerate(worst))
    yield Figure(
        f"throughput/{pair}/doubling",
        f"{title}: tokens/s after clients doubled ÷ before, the worst step",
        Side("twice the clients", "tokens/s", after),
        Side("clients", "tokens/s", before),
        least(DOUBLING),
        {f"doubled_from_in_run_{run + 1}": a.clients for run, (a, _) in enumerate(worst)},
        any(a.disturbed or b.disturbed for a, b in steps),
    )


def noisy_figures(pair: str, title: str, rows: PairRows) -> Iterator[Figure]:
    """MTP against depth 0 beside a neighbour."""
    for n in CLIENT_COUNTS:
        ours, plain = (rows.find(name, "tokens_per_s", n) for name in ("ours", "depth 0"))
        yield from ratio(
            f"noisy/{pair}/{n}",
            f"{title}, {company(n)}, a neighbour on one core: MTP auto ÷ depth 0",
            ours,
            plain,
            least(AUTO_OVER_PLAIN),
        )


@contextmanager
def busy_core() -> Iterator[None]:
    """Beside a process that keeps one core busy."""
    process = subprocess.Popen([sys.executable, "-c", _BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()

"""Start to ready, and peak memory after sixteen clients: each contestant alone, started anew.

- Ready is the first answer of one token; files are in the page cache, which the first start of each
  contestant, not counted, sees to.
- Peak memory is the resident one of the process and its children (VmHWM), weights included, after
  one burst of sixteen clients as in `throughput`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack

from bench.measure import BenchError, Figure
from bench.peers.load import all_ask, load_measures
from bench.peers.processes import peak_memory_bytes
from bench.peers.prompts import chats
from bench.peers.question import NATURAL_TOKENS_MAX, Answer, Measures, Question, rows_of
from bench.peers.rows import PairRows, most, ratio

BURST, QUICK_BURST, QUICK_BURST_TOKENS = 16, 4, 8
READY_OVER_MLX_LM, MEMORY_OVER_MLX_LM = 1.0, 1.1
FOOTPRINT_UNITS = {"ready_s": "s", "peak_bytes": "bytes"}


async def ask_footprint(question: Question) -> Answer:
    """Raises BenchError."""
    named = {c.name: c for c in question.contestants}
    clients = QUICK_BURST if question.quick else BURST

    async def turn(side: str, number: int) -> Measures:
        async with AsyncExitStack() as stack:
            running = await question.start(stack, named[side])
            asked = [[chat] for chat in chats(clients, skipped=(number + 1) * clients)]
            tokens_max = QUICK_BURST_TOKENS if question.quick else NATURAL_TOKENS_MAX
            heard = await all_ask(running, asked, tokens_max)
            peak = peak_memory_bytes(running.pid)
            if peak is None:
                raise BenchError("peak memory is read from /proc, which this system has not")
            measures = load_measures([reply for replies in heard for reply in replies])
            return {"ready_s": running.ready_s, "peak_bytes": float(peak)} | measures

    for side in named:
        async with AsyncExitStack() as stack:
            await question.start(stack, named[side])
    found = await question.alternations(list(named), turn, "start and memory")
    rows = rows_of(found, FOOTPRINT_UNITS, clients)
    plan = question.pair.plan
    return Answer(
        tuple(rows), tuple(footprint_figures(plan.name, plan.title, PairRows(rows), clients))
    )


def footprint_figures(pair: str, title: str, rows: PairRows, clients: int) -> Iterator[Figure]:
    for measure, what, bound in (
        ("ready_s", "start to first answer", READY_OVER_MLX_LM),
        ("peak_bytes", f"peak memory after {clients} clients", MEMORY_OVER_MLX_LM),
    ):
        ours, lm = (rows.find(name, measure, clients) for name in ("ours", "mlx_lm"))
        said = f"{title}: {what}, ours ÷ mlx_lm.server"
        yield from ratio(f"footprint/{pair}/{measure}", said, ours, lm, most(bound))

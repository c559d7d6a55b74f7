"""Time to first text on a hit, by the length of what is found.

- As in first_text.py: a system prompt that was asked before and another question behind it. What is
  computed is the question; what grows with the prefix is what attention reads of it, and whatever a
  server copies.
- Every length and turn has a system prompt of its own, which begins unlike the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack
from functools import partial

from bench.measure import Figure
from bench.peers.contestants import naming
from bench.peers.first_text import cold_and_hit
from bench.peers.question import Answer, Measures, Question, rows_of
from bench.peers.rows import MeasuredRow, PairRows, most, ratio

LENGTHS, QUICK_LENGTHS = (500, 2000, 4000, 7500), (100, 400)
LENGTH_OVER_MLX_LM = 1.0


async def ask_lengths(question: Question) -> Answer:
    """Raises BenchError."""
    lengths = QUICK_LENGTHS if question.quick else LENGTHS
    rows: list[MeasuredRow] = []
    async with AsyncExitStack() as stack:
        running = await question.start_all(stack)

        async def turn(at: int, side: str, number: int) -> Measures:
            seed = number * len(lengths) + at
            found = await cold_and_hit(running[side], lengths[at], seed)
            return {hit_measure(lengths[at]): found["hit_s"]}

        for side in running:
            with naming(side):
                for at in range(len(lengths)):
                    await turn(at, side, -1)
        sides = list(running)
        parts = {f"behind {n} tokens": (sides, partial(turn, at)) for at, n in enumerate(lengths)}
        for tokens, found in zip(lengths, (await question.rounds(parts)).values(), strict=True):
            rows += rows_of(found, {hit_measure(tokens): "s"}, 1)
    plan = question.pair.plan
    figures = length_figures(plan.name, plan.title, PairRows(rows), lengths)
    return Answer(tuple(rows), tuple(figures))


def hit_measure(tokens: int) -> str:
    return f"hit_behind_{tokens}_s"


def length_figures(
    pair: str, title: str, rows: PairRows, lengths: tuple[int, ...]
) -> Iterator[Figure]:
    """Ours against mlx_lm.server's at each length; of both the longest against the shortest."""
    for tokens in lengths:
        ours, lm = (rows.find(name, hit_measure(tokens), 1) for name in ("ours", "mlx_lm"))
        what = f"{title}: time to first text behind {tokens:,} tokens that are found"
        said = f"{what}, ours ÷ mlx_lm.server"
        yield from ratio(f"lengths/{pair}/{tokens}", said, ours, lm, most(LENGTH_OVER_MLX_LM))
    for name in ("ours", "mlx_lm"):
        long, short = (rows.find(name, hit_measure(n), 1) for n in (lengths[-1], lengths[0]))
        said = f"{title}: the same, {name}, behind {lengths[-1]:,} tokens ÷ behind {lengths[0]:,}"
        yield from ratio(f"lengths/{pair}/growth/{name}", said, long, short, None)

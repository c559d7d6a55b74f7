"""What our own scheduler promises, over a real daemon; no peer takes part.

- A long prompt among eight streams, as `gaps` lands it: gaps ÷ the p50 of all idle ones, pooled,
  and the prompt's time to first text by its share ÷ the same alone: what prompts have of a step,
  and what it has of their tokens, as streams that end ask again. Each alternation has all three.
- Mixed arrivals: so many clients come one by one, at times that are drawn once, with two questions
  each. Times to first text and gaps, p50 and p99.
- Acceptance is the pair's: of the bundled and the heavy one what the drafter gives, of heavy-60 and
  heavy-30 what its noise leaves.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from random import Random

import anyio

from bench.measure import Figure, Side
from bench.peers.contestants import Running
from bench.peers.disturbance import Alternation
from bench.peers.gaps import (
    GAP_UNITS,
    LANDING_TOKENS,
    QUICK_LANDING_TOKENS,
    STREAMS,
    landing_measures,
    percentile,
    stretch_rows,
    warmed,
)
from bench.peers.heard import ChatClient, Heard
from bench.peers.prompts import chats, long_chat, text_tokens
from bench.peers.question import (
    NATURAL_TOKENS_MAX,
    Answer,
    Measures,
    Question,
    Take,
    checked,
    rows_of,
)
from bench.peers.rows import most
from sapwood.scheduler.core.slicing import paced_share
from sapwood.scheduler.limits import Limits

ARRIVING, QUICK_ARRIVING = (1, 2, 4, 8, 16, 32), (1, 4)
ASKED_EACH, ARRIVAL_S = 2, 0.25  # seconds from one client's first question to the next's, mean
GAP_P50_MOST, GAP_P99_MOST, FIRST_TEXT_MOST = 1.7, 2.5, 1.25
ALONE = "alone_first_text_s"
ARRIVAL_UNITS = {
    "first_text_p50_s": "s", "first_text_p99_s": "s", "gap_p50_s": "s", "gap_p99_s": "s",
    "arrivals_tokens_per_s": "tokens/s",
}  # fmt: skip


async def ask_schedule(question: Question) -> Answer:
    """Raises BenchError."""
    async with AsyncExitStack() as stack:
        running = await question.start_all(stack)
        tokens = QUICK_LANDING_TOKENS if question.quick else LANDING_TOKENS
        pooled: dict[str, list[float]] = {side: [] for side in running}

        async def land(side: str, number: int) -> Measures:
            found = await landing_measures(running[side], number, tokens, pooled[side])
            return {**found, ALONE: await alone_s(running[side], number, tokens)}

        async def arrive(count: int, side: str, number: int) -> Measures:
            return await arrivals(running[side], count, number)

        await warmed(running)
        counts = QUICK_ARRIVING if question.quick else ARRIVING
        sides = list(running)
        parts: dict[str, tuple[list[str], Take]] = {"landing": (sides, land)}
        parts |= {f"{n} arriving": (sides, partial(arrive, n)) for n in counts}
        found = await question.rounds(parts)
    landed = found["landing"]
    rows = [*rows_of(landed, GAP_UNITS | {ALONE: "s"}, STREAMS), *stretch_rows(landed, pooled)]
    for count in counts:
        rows += rows_of(found[f"{count} arriving"], ARRIVAL_UNITS, count, ("drafts", "accepted"))
    figures = [
        figure for side in sides for figure in schedule_figures(question, side, landed, pooled)
    ]
    return Answer(tuple(rows), tuple(figures))


async def alone_s(running: Running, number: int, tokens: int) -> float:
    """Time to first text of a prompt of so many tokens that nobody else is beside."""
    async with running.clients(running.address, 1) as (client,):
        return (await client.ask(long_chat(tokens, 5000 + number), 1)).first_text_s


async def arrivals(running: Running, count: int, number: int) -> Measures:
    """Each client of `count` comes at its time, with questions that no other try asks."""
    random, heard = Random(1000 * count + 1), list[Heard]()
    skipped = (number + 1) * ASKED_EACH * max(ARRIVING)
    asked = chats(ASKED_EACH * count, skipped=skipped)

    async def come(client: ChatClient, at: int, delay_s: float) -> None:
        await anyio.sleep(delay_s)
        for chat in asked[at::count]:
            heard.append(await client.ask(chat, NATURAL_TOKENS_MAX))

    async with (
        running.clients(running.address, count) as clients,
        anyio.create_task_group() as tasks,
    ):
        delay_s = 0.0
        for at, client in enumerate(clients):
            tasks.start_soon(come, client, at, delay_s)
            delay_s += random.expovariate(1.0 / ARRIVAL_S)
    return arrival_measures(heard)


def arrival_measures(heard: Sequence[Heard]) -> dict[str, float]:
    first = [reply.first_text_s for reply in heard]
    gaps = checked([gap for reply in heard for gap in reply.message_gaps_s], "gaps")
    span_s = max(reply.ended for reply in heard) - min(reply.asked for reply in heard)
    return {
        "first_text_p50_s": percentile(first, 0.5),
        "first_text_p99_s": percentile(first, 0.99),
        "gap_p50_s": percentile(gaps, 0.5),
        "gap_p99_s": percentile(gaps, 0.99),
        "arrivals_tokens_per_s": sum(text_tokens(reply.text) for reply in heard) / span_s,
        "drafts": float(sum(reply.drafts or 0 for reply in heard)),
        "accepted": float(sum(reply.accepted or 0 for reply in heard)),
    }


def schedule_figures(
    question: Question,
    side: str,
    landed: Sequence[Alternation[Measures]],
    pooled: Mapping[str, Sequence[float]],
) -> Iterator[Figure]:
    """Against what is promised (ADR 021)."""
    plan, disturbed = question.pair.plan, any(each.disturbed for each in landed)
    turns = [each.values[side] for each in landed]
    base = statistics.median(checked(pooled[side], "idle gaps"))
    idle = Side("idle, pooled", "s", (base,) * len(turns))
    what = f"{plan.title}: a long prompt among {STREAMS} streams"
    for name, bound in (("p50", GAP_P50_MOST), ("p99", GAP_P99_MOST)):
        ours = Side(side, "s", tuple(turn[f"landing_{name}_s"] for turn in turns))
        place, said = f"schedule/{plan.name}/gap_{name}", f"{what}, gap {name} ÷ idle p50"
        yield Figure(place, said, ours, idle, most(bound), disturbed=disturbed)
    share = paced_share(Limits().itl_target)
    own = [turn["landing_own_part"] * turn["landing_first_text_s"] for turn in turns]
    ours = Side(side, "s", tuple(share * seconds for seconds in own))
    peer = Side("alone", "s", tuple(turn[ALONE] for turn in turns))
    said = f"{what}, its first text by its share ÷ alone"
    place = f"schedule/{plan.name}/first_text"
    yield Figure(place, said, ours, peer, most(FIRST_TEXT_MOST), {"share": share}, disturbed)

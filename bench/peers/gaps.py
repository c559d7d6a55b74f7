"""How evenly text comes: gaps between messages of eight streams, idle and beside a long prompt.

- Idle: all eight speak, and nothing else is going on; what is left of them when the first has ended
  takes shorter steps. Landing: a ninth client asks for one token behind 8,000 once the
  streams have got as many replies as they are; gaps count that overlap the time from its request to
  its first text. Who asks the next question meanwhile has no gap but waits: that is told apart.
- Streams are plain replies; who has ended asks the next question until the prompt has landed, so
  gaps lie within replies and no reply has to be made longer than it is.
- Percentiles of an alternation are of all its streams' gaps. What a landing does is told as its
  gaps ÷ the p50 of that contestant's idle gaps of all alternations, pooled.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from itertools import pairwise
from math import ceil

import anyio

from bench.measure import Figure
from bench.peers.contestants import Running, naming
from bench.peers.disturbance import Alternation
from bench.peers.heard import Heard, computed_tokens
from bench.peers.prompts import chats, long_chat
from bench.peers.question import NATURAL_TOKENS_MAX, Answer, Measures, Question, checked, rows_of
from bench.peers.rows import MeasuredRow, PairRows, ratio

STREAMS, LANDING_TOKENS, QUICK_LANDING_TOKENS = 8, 8000, 2000
REPLIES_PLANNED = 64  # of a stream in one turn; far more than any asks
GAP_UNITS = {
    "landing_p99_s": "s", "landing_p50_s": "s", "idle_p99_s": "s", "idle_p50_s": "s",
    "landing_most_s": "s", "landing_first_text_s": "s", "landing_wait_most_s": "s",
    "landing_own_part": "share",
}  # fmt: skip


async def ask_gaps(question: Question) -> Answer:
    """Raises BenchError."""
    async with AsyncExitStack() as stack:
        running = await question.start_all(stack)
        tokens = QUICK_LANDING_TOKENS if question.quick else LANDING_TOKENS
        pooled: dict[str, list[float]] = {side: [] for side in running}

        async def turn(side: str, number: int) -> Measures:
            return await landing_measures(running[side], number, tokens, pooled[side])

        await warmed(running)
        found = await question.alternations(list(running), turn, "gaps")
    rows = [*rows_of(found, GAP_UNITS, STREAMS), *stretch_rows(found, pooled)]
    plan = question.pair.plan
    return Answer(tuple(rows), tuple(gap_figures(plan.name, plan.title, PairRows(rows))))


async def warmed(running: Mapping[str, Running]) -> None:
    """One turn of each contestant that counts for nothing. Raises BenchError."""
    for side in running:
        with naming(side):
            await idle_gaps(running[side], -1)


async def landing_measures(
    running: Running, number: int, tokens: int, pooled: list[float]
) -> Measures:
    """Of streams that are alone, and while a prompt of so many tokens lands among them.

    pooled: gets the gaps of those that are alone.
    """
    idle = await idle_gaps(running, number)
    pooled += idle
    return gap_measures(idle, *await landing(running, number, tokens))


async def idle_gaps(running: Running, number: int) -> list[float]:
    """One reply for each stream, as long as all of them speak."""
    heard: list[Heard] = []
    await streams(running, number, heard, lambda: False)
    all_speak = max(reply.messages[0] for reply in heard)
    return within(heard, all_speak, min(reply.messages[-1] for reply in heard))


async def landing(running: Running, number: int, tokens: int) -> tuple[list[Heard], Heard]:
    """What the streams heard, and the client of the long prompt."""
    landed: list[Heard] = []
    heard: list[Heard] = []
    full = anyio.Event()

    def goes_on() -> bool:
        if len(heard) >= STREAMS:
            full.set()
        return not landed

    # Made first: it takes a tenth of a second, in which this process would hear no stream.
    chat = long_chat(tokens, 1000 + number)

    async def land() -> None:
        async with running.clients(running.address, 1) as (client,):
            await full.wait()
            landed.append(await client.ask(chat, 1))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(streams, running, 500 + number, heard, goes_on)
        tasks.start_soon(land)
    return heard, landed[0]


async def streams(
    running: Running, number: int, heard: list[Heard], goes_on: Callable[[], bool]
) -> None:
    """Adds replies of STREAMS clients, each at least one, and another while `goes_on`."""
    asked = chats(STREAMS * REPLIES_PLANNED, skipped=(number + 1) * STREAMS)
    async with (
        running.clients(running.address, STREAMS) as clients,
        anyio.create_task_group() as tasks,
    ):

        async def one(at: int) -> None:
            for chat in asked[at::STREAMS]:
                heard.append(await clients[at].ask(chat, NATURAL_TOKENS_MAX))
                if not goes_on():
                    break

        for at in range(STREAMS):
            tasks.start_soon(one, at)


def overlapping(heard: Sequence[Heard], start: float, end: float) -> list[float]:
    """Gaps within replies that share time with [start, end)."""
    return [
        later - earlier
        for reply in heard
        for earlier, later in pairwise(reply.messages)
        if earlier < end and later > start
    ]


def within(heard: Sequence[Heard], start: float, end: float) -> list[float]:
    """Gaps within replies that lie in [start, end]."""
    return [
        later - earlier
        for reply in heard
        for earlier, later in pairwise(reply.messages)
        if earlier >= start and later <= end
    ]


def own_part(heard: Sequence[Heard], long: Heard) -> float | None:
    """Of the prompt tokens that were computed until the long prompt's first text, those of it.

    None where the server does not tell what it found.
    """
    own, together = computed_tokens([long]), computed_tokens([*waiting(heard, long), long])
    return None if own is None or together is None else own / together


def waiting(heard: Sequence[Heard], long: Heard) -> list[Heard]:
    """Those whose time to first text shares time with the long prompt's."""
    start, end = long.asked, long.messages[0]
    return [reply for reply in heard if reply.asked < end and reply.messages[0] > start]


def gap_measures(idle: Sequence[float], heard: Sequence[Heard], long: Heard) -> dict[str, float]:
    start, end = long.asked, long.messages[0]
    gaps = checked(overlapping(heard, start, end), "gaps while a prompt landed")
    waited = [reply.first_text_s for reply in waiting(heard, long)]
    part = own_part(heard, long)
    return {
        "landing_p99_s": percentile(gaps, 0.99),
        "landing_p50_s": percentile(gaps, 0.5),
        "landing_most_s": max(gaps),
        "landing_first_text_s": long.first_text_s,
    } | {
        **({f"idle_p{n}_s": percentile(idle, n / 100) for n in (50, 99)} if idle else {}),
        **({"landing_wait_most_s": max(waited)} if waited else {}),
        **({"landing_own_part": part} if part is not None else {}),
    }


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that at least `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, ceil(share * len(ordered)) - 1)]


def stretch_rows(
    found: Sequence[Alternation[Measures]], pooled: Mapping[str, Sequence[float]]
) -> list[MeasuredRow]:
    """Landing gaps ÷ the contestant's own pooled idle p50; none of whose streams never all speak.

    Who reads prompts one after the other has ended the first reply before the last one begins.
    """
    rows = []
    for side, idle in pooled.items():
        if not idle:
            continue
        base = statistics.median(idle)
        for name in ("p50", "p99"):
            values = tuple(a.values[side][f"landing_{name}_s"] / base for a in found)
            disturbed = sum(a.disturbed for a in found)
            rows.append(
                MeasuredRow(
                    side, f"landing_{name}_over_idle", "times", STREAMS, values, {}, disturbed
                )
            )
    return rows


def gap_figures(pair: str, title: str, rows: PairRows) -> Iterator[Figure]:
    """No target: the project promises none for this yet."""
    what = "gap p99 while 8,000 tokens land among 8 streams"
    for measure, said in (("landing_p99_s", what), ("landing_p99_over_idle", f"{what} ÷ idle p50")):
        ours, lm = (rows.find(name, measure, STREAMS) for name in ("ours", "mlx_lm"))
        place = f"gaps/{pair}/{measure}"
        yield from ratio(place, f"{title}: {said}, ours ÷ mlx_lm.server", ours, lm, None)

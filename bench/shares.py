"""What principals get of a real daemon's slots where they contend for them, fair beside unfair.

- Eight slots, and streams that ask again at once: the questions of bench/speculation.py, greedy, to
  their natural end, prompts found in the tree. Each principal comes by a unix socket of its own.
  Unfair: the very same streams, all of one principal.
- Counted is in tokens as clients receive them, from WARM_S on for a span. Rows are alike here, so
  tokens stand for device time, which bench/fair.py counts on the fake device.
- Entitled are slots by water-filling: 1, 1, 2 and the rest of 1, 1, 2 and 20 streams, and 1, 2 and
  4 sevenths of 20 streams each with these weights.
- The newcomer comes to 200 requests of somebody else that all run or wait, and is judged by five
  of their gaps and by its own time to a first token where nobody is beside it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median

import anyio

from bench.clients import ask, connected
from bench.fair import (
    CONTENDED_SLOTS,
    CROWD_WEIGHTS,
    CROWDED_STREAMS,
    NEWCOMER_STEPS_MAX,
    SLOT_SHARES,
)
from bench.measure import BenchError, Figure, Side, alternated, at_least, at_most
from bench.setup import Setup
from bench.speculation import QUESTIONS, SPECULATION_OPTIONS
from sapwood import AsyncClient, Delta, Message
from sapwood.client.values import GenerateOptions
from sapwood.daemon.demo.process import serve_command
from tests.sim.crowd import jain

WARM_S, SPAN_S, QUICK_SPAN_S = 3.0, 15.0, 2.0
QUEUED_AHEAD = 200
_NATURAL = GenerateOptions(**SPECULATION_OPTIONS, temperature=0.0)
_LONG = GenerateOptions(max_tokens=512, ignore_eos=True, temperature=0.0)
_SHORT = GenerateOptions(max_tokens=8, temperature=0.0)
# A connection for so many streams: far below what gRPC lets through at once.
_STREAMS_EACH = 20
_EVERYBODY = "everybody"  # whose all streams are where nothing is fair


@dataclass(frozen=True, slots=True)
class Contest:
    """Streams, and what each principal is entitled to, in any unit, by principal."""

    title: str
    streams: Mapping[str, int]
    entitled: Mapping[str, float]


CONTESTS = {
    "streams": Contest("1, 1, 2 and 20 streams", CROWDED_STREAMS, SLOT_SHARES),
    "weights": Contest(
        "weights 1, 2 and 4 with 20 streams each", dict.fromkeys(CROWD_WEIGHTS, 20), CROWD_WEIGHTS
    ),
}
PRINCIPALS = (_EVERYBODY, *(name for contest in CONTESTS.values() for name in contest.streams))


@dataclass(slots=True)
class ContestSide:
    """One side of a contest: by turn, Jain's index of what was attained, and tokens a second."""

    name: str
    jain: list[float] = field(default_factory=list)
    tokens_per_s: list[float] = field(default_factory=list)

    @property
    def is_fair(self) -> bool:
        return self.name == "fair"

    def add(self, contest: Contest, tokens: Mapping[str, int], span_s: float) -> None:
        """Raises BenchError. Where nothing is fair somebody may starve: that is what it shows."""
        enough = all if self.is_fair else any
        if not enough(tokens.values()):
            raise BenchError(f"{contest.title}: somebody got nothing: {dict(tokens)}")
        attained = {name: float(got) for name, got in tokens.items()}
        self.jain.append(jain(attained, contest.entitled))
        self.tokens_per_s.append(sum(tokens.values()) / span_s)


def measure(setup: Setup) -> list[Figure]:
    config = setup.folder / "shares.toml"
    config.write_text(daemon_settings(), encoding="utf-8")
    sockets = {name: setup.folder / f"{name}.sock" for name in PRINCIPALS}
    listen = [
        part
        for name, socket in sockets.items()
        for part in ("--listen", f"unix:{socket},principal={name}")
    ]
    command = serve_command(*setup.given_flags, "--config", str(config), *listen)
    with setup.daemon(command):
        return anyio.run(partial(_measure, setup, sockets))


def daemon_settings() -> str:
    weights = [
        f"[principals.{name}]\nweight = {weight:g}\n" for name, weight in CROWD_WEIGHTS.items()
    ]
    return "\n".join([f"[limits]\nslots_max = {CONTENDED_SLOTS}\n", *weights])


async def _measure(setup: Setup, sockets: Mapping[str, Path]) -> list[Figure]:
    sides = {name: (ContestSide("fair"), ContestSide("unfair")) for name in CONTESTS}
    newcomers: list[tuple[float, float]] = []
    for run in range(setup.runs):
        for name, contest in alternated(list(CONTESTS.items()), run):
            for side in alternated(sides[name], run):
                await _contend(setup, sockets, contest, side)
            said = ", ".join(f"{side.name} {side.jain[-1]:.3f}" for side in sides[name])
            setup.say(f"run {run + 1}: {contest.title}: {said}")
        newcomers.append(await _newcomer(sockets))
        setup.say(f"run {run + 1}: newcomer {newcomers[-1][0] * 1e3:.0f} ms")
    figures = [
        figure
        for name, contest in CONTESTS.items()
        for figure in contest_figures(name, contest, *sides[name])
    ]
    return [*figures, _newcomer_figure(newcomers)]


async def _contend(
    setup: Setup, sockets: Mapping[str, Path], contest: Contest, side: ContestSide
) -> None:
    span_s = QUICK_SPAN_S if setup.quick else SPAN_S
    tokens = dict.fromkeys(contest.streams, 0)
    counted_from = time.perf_counter() + WARM_S

    async def stream(client: AsyncClient, name: str, first: int) -> None:
        for index in count(first):
            async with client.generate(_question(index), **_NATURAL) as events:
                async for event in events:
                    if isinstance(event, Delta) and time.perf_counter() >= counted_from:
                        tokens[name] += len(event.token_ids)

    with anyio.move_on_after(WARM_S + span_s):
        async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
            for name, streams in contest.streams.items():
                socket = sockets[name if side.is_fair else _EVERYBODY]
                clients = await stack.enter_async_context(_connections(socket, streams))
                for number in range(streams):
                    tasks.start_soon(stream, clients[number // _STREAMS_EACH], name, 3 * number)
    side.add(contest, tokens, span_s)


async def _newcomer(sockets: Mapping[str, Path]) -> tuple[float, float]:
    """Its seconds to a first token behind QUEUED_AHEAD requests, and what it is judged by."""
    gaps: list[float] = []

    async def wait_behind(client: AsyncClient, index: int) -> None:
        async with client.generate(_question(index), **_LONG) as events:
            before = 0.0
            async for event in events:
                if isinstance(event, Delta):
                    now = time.perf_counter()
                    gaps.extend([now - before] if before else [])
                    before = now

    async with AsyncExitStack() as stack:
        (one,) = await stack.enter_async_context(_connections(sockets["a"], 1))
        alone = await ask(one, _question(0), _SHORT)
        many = await stack.enter_async_context(_connections(sockets["d"], QUEUED_AHEAD))
        async with anyio.create_task_group() as tasks:
            for index in range(QUEUED_AHEAD):
                tasks.start_soon(wait_behind, many[index // _STREAMS_EACH], index)
            await anyio.sleep(WARM_S)
            gap_s = median(gaps)
            came = await ask(one, _question(1), _SHORT)
            tasks.cancel_scope.cancel()
    return came.first_token_s, NEWCOMER_STEPS_MAX * gap_s + alone.first_token_s


def _question(index: int) -> list[Message]:
    return [Message("user", QUESTIONS[index % len(QUESTIONS)])]


def _connections(socket: Path, streams: int) -> AbstractAsyncContextManager[list[AsyncClient]]:
    """As many as so many streams need."""
    return connected(f"unix:{socket}", -(-streams // _STREAMS_EACH))


def contest_figures(
    name: str, contest: Contest, fair: ContestSide, unfair: ContestSide
) -> Sequence[Figure]:
    ideal = Side("ideal", "", (1.0,) * len(fair.jain))
    details = {"unfair": median(unfair.jain)}
    ours = Side(fair.name, "tokens/s", tuple(fair.tokens_per_s))
    peer = Side(unfair.name, "tokens/s", tuple(unfair.tokens_per_s))
    said = f"{contest.title}: Jain's index of tokens ÷ entitled"
    return [
        Figure(
            f"shares/{name}/jain", said, Side(fair.name, "", tuple(fair.jain)), ideal,
            at_least(0.98, "worse quartile"), details,
        ),
        Figure(
            f"shares/{name}/tokens", f"{contest.title}: tokens/s ÷ unfair", ours, peer,
            at_least(0.95, "worse quartile"),
        ),
    ]  # fmt: skip


def _newcomer_figure(newcomers: Sequence[tuple[float, float]]) -> Figure:
    came, bounds = zip(*newcomers, strict=True)
    return Figure(
        "shares/newcomer",
        f"a first token behind {QUEUED_AHEAD} requests of somebody else ÷ "
        f"{NEWCOMER_STEPS_MAX} of their gaps and its own prompt",
        Side("fair", "s", came),
        Side("bound", "s", bounds),
        at_most(1.0, "worse quartile"),
    )

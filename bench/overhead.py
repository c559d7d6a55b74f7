"""What HTTP costs: 16 clients through SMG beside 16 over gRPC, of one daemon with the heavy pair.

- Both sides ask the same daemon, in turn, the same kind of question in as many words; neither finds
  the other's system prompt, which each knows from a burst before the clock.
- CPU is that of the process of SMG, and that of the daemon without it, over a burst, by the tokens
  of its replies; the daemon's is mostly the model's, which computes on these cores. Linux alone
  tells.
- `--quick` takes the bundled pair, and means nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import anyio

from bench.measure import BenchError, Figure, Side, alternated, at_least, at_most
from bench.peers.grpc_clients import our_clients
from bench.peers.heard import ChatClients, Heard
from bench.peers.http_client import http_clients
from bench.peers.pairs import pair_plans
from bench.peers.processes import CpuReading, descendants, read_cpu
from bench.peers.prompts import chats, text_tokens
from bench.setup import Setup
from sapwood.daemon.demo.process import DaemonProcess, serve_command

_CLIENTS = 16
TOKENS, QUICK_TOKENS = 128, 16
GATEWAY = b"sapwood.daemon.gateway.leash"


@dataclass(slots=True)
class DoorBurst:
    """All clients once. CPU in seconds, None where nobody tells."""

    heard: Sequence[Heard]
    gateway_s: float | None
    worker_s: float | None

    @property
    def tokens(self) -> int:
        return sum(text_tokens(one.text) for one in self.heard)

    @property
    def tokens_per_s(self) -> float:
        span_s = max(one.ended for one in self.heard) - min(one.asked for one in self.heard)
        return self.tokens / span_s

    @property
    def first_text_s(self) -> float:
        return statistics.median(one.first_text_s for one in self.heard)


@dataclass(slots=True)
class ClientsDoor:
    """One side of the comparison."""

    name: str
    clients: ChatClients
    address: str
    bursts: list[DoorBurst] = field(default_factory=list)

    def side(self, unit: str, of: str) -> Side:
        return Side(self.name, unit, tuple(getattr(burst, of) for burst in self.bursts))

    def cpu_ms(self, of: str) -> float | None:
        """A token, the median over bursts."""
        spent = [(getattr(burst, of), burst.tokens) for burst in self.bursts]
        known = [1e3 * seconds / tokens for seconds, tokens in spent if seconds is not None]
        return statistics.median(known) if known else None


def measure(setup: Setup) -> list[Figure]:
    pair = pair_plans()["bundled" if setup.quick else "heavy"].write(setup.folder)
    flags = ("--http", "127.0.0.1:0", "--model", str(pair.target), "--draft", str(pair.drafter))
    with setup.daemon(serve_command(*flags)) as daemon:
        doors = doors_of(daemon, pair.target.name)
        anyio.run(_measure, setup, daemon, doors)
    return overhead_figures(*doors)


def doors_of(daemon: DaemonProcess, model: str) -> tuple[ClientsDoor, ClientsDoor]:
    return (
        ClientsDoor("gRPC", partial(our_clients, draft_tokens=None), daemon.address),
        ClientsDoor("HTTP", partial(http_clients, model=model), daemon.http),
    )


async def _measure(setup: Setup, daemon: DaemonProcess, doors: Sequence[ClientsDoor]) -> None:
    asked = 0
    for run in range(-1, setup.runs):  # the first one warms
        for door in alternated(doors, run):
            burst = await _burst(door, daemon.pid, asked, setup)
            asked += _CLIENTS
            if run >= 0:
                door.bursts.append(burst)
                setup.say(f"run {run + 1}: {door.name}: {burst.tokens_per_s:.0f} tokens/s")


async def _burst(door: ClientsDoor, daemon: int, skipped: int, setup: Setup) -> DoorBurst:
    heard: list[Heard] = []
    tokens_max = QUICK_TOKENS if setup.quick else TOKENS
    asking = chats(_CLIENTS, skipped)
    async with door.clients(door.address, _CLIENTS) as clients:
        before = read_cpu()

        async def one(number: int) -> None:
            heard.append(await clients[number].ask(asking[number], tokens_max))

        async with anyio.create_task_group() as tasks:
            for number in range(_CLIENTS):
                tasks.start_soon(one, number)
        after = read_cpu()
    if before is None or after is None:
        return DoorBurst(heard, None, None)
    gateway = gateway_of(daemon, after)
    spent = {root: after.of_tree(root) - before.of_tree(root) for root in (gateway, daemon)}
    return DoorBurst(heard, spent[gateway], spent[daemon] - spent[gateway])


def gateway_of(daemon: int, reading: CpuReading) -> int:
    """The process of SMG. Raises BenchError where there is none."""
    for pid in descendants(daemon, reading.parents):
        with suppress(OSError):  # one that has ended meanwhile
            if GATEWAY in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    raise BenchError("the daemon has no gateway beside it")


def overhead_figures(direct: ClientsDoor, http: ClientsDoor) -> list[Figure]:
    """First text at 1.25 is 0.25 of the direct one's added."""
    return [
        Figure(
            "overhead/throughput",
            f"{_CLIENTS} clients, tokens/s: HTTP ÷ gRPC",
            http.side("tokens/s", "tokens_per_s"),
            direct.side("tokens/s", "tokens_per_s"),
            at_least(0.9),
            dict(_cpu(direct, http)),
        ),
        Figure(
            "overhead/first_text",
            f"{_CLIENTS} clients, median time to first text: HTTP ÷ gRPC",
            http.side("s", "first_text_s"),
            direct.side("s", "first_text_s"),
            at_most(1.25),
        ),
    ]


def _cpu(direct: ClientsDoor, http: ClientsDoor) -> Iterator[tuple[str, float]]:
    for name, door, of in (
        ("gateway_cpu_ms_a_token", http, "gateway_s"),
        ("worker_cpu_ms_a_token_over_http", http, "worker_s"),
        ("worker_cpu_ms_a_token_over_grpc", direct, "worker_s"),
    ):
        if (found := door.cpu_ms(of)) is not None:
            yield name, found

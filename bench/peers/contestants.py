"""Who takes part: how each is started, where it listens, and how it is asked.

- Each is a process of its own on a free loopback port, with the same BLAS preloaded and no hub to
  ask. Ready is who has answered: one token, greedy, through the same client that measures.
- A peer runs with its defaults but for what its own documentation offers for this load; what was
  set, and why, stands beside it here and in docs/bench/peers.md.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial

import anyio
import grpc

from bench.measure import BenchError
from bench.peers.environments import ENVIRONMENTS, Environment
from bench.peers.grpc_clients import our_clients, smg_clients
from bench.peers.heard import ChatClients
from bench.peers.http_client import http_clients
from bench.peers.pairs import PairPlan, WrittenPair
from bench.setup import first_cause
from sapwood import Message, SapwoodError
from sapwood.daemon import blas

READY_S_MAX, PEER_STOP_S_MAX = 300.0, 20.0
_POLL_S = 0.05
_LOG_LINES = 15
ALL_COUNTS = (1, 2, 4, 8, 16, 32)

CommandLine = Callable[[WrittenPair, int], list[str]]


@dataclass(frozen=True, slots=True)
class Contestant:
    """counts: numbers of clients that it is measured at. drafts: whether the drafter matters to it.

    heavy_counts: instead, on a widened pair.

    command: argv for a pair and a port. environment: None for ours, which is this one.
    """

    name: str
    title: str
    command: CommandLine
    clients: Callable[[WrittenPair], ChatClients]
    environment: Environment | None = None
    environ: Mapping[str, str] = field(default_factory=dict)
    counts: tuple[int, ...] = ALL_COUNTS
    heavy_counts: tuple[int, ...] | None = None
    drafts: bool = False

    def counts_on(self, plan: PairPlan) -> tuple[int, ...]:
        """Numbers of clients. Who takes a minute for a burst is not asked for each of them."""
        heavy = self.heavy_counts if plan.widening > 1 else None
        return self.counts if heavy is None else heavy

    def process_environ(self) -> dict[str, str]:
        """The same BLAS for all; nobody looks for models elsewhere.

        Nor compiles its sources anew at every start, as containers and CI are often told to:
        peers' were compiled when they were installed, and ours are when they first start.
        """
        found = blas.environment(os.environ) | {"HF_HUB_OFFLINE": "1"} | dict(self.environ)
        found.pop("PYTHONDONTWRITEBYTECODE", None)
        return found


@dataclass(slots=True)
class Running:
    """A contestant that serves a pair. ready_s: from its start to its first answer."""

    contestant: Contestant
    address: str
    pid: int
    clients: ChatClients
    ready_s: float
    blas: str


@asynccontextmanager
async def started(contestant: Contestant, pair: WrittenPair) -> AsyncIterator[Running]:
    """Raises BenchError where it does not come up."""
    port = free_port()
    with tempfile.TemporaryFile() as log:
        began = time.perf_counter()
        process = _process(contestant, pair, port, log.fileno())
        try:
            address, clients = f"127.0.0.1:{port}", contestant.clients(pair)
            with naming(contestant.name):
                await _wait_ready(process, address, clients)
            ready_s = time.perf_counter() - began
            loaded = blas.loaded(process.pid)
            yield Running(contestant, address, process.pid, clients, ready_s, loaded)
        except BenchError as error:
            if not str(error).startswith(f"{contestant.name}: "):
                raise  # another's
            log.seek(0)
            lines = log.read().decode(errors="replace").splitlines()[-_LOG_LINES:]
            said = "".join(f"\n  {line}" for line in lines)
            raise BenchError(f"{error}\nits last words:{said}") from error
        finally:
            _end(process)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """What fails within, in a group of tasks as well, is said to be this contestant's."""
    try:
        yield
    except Exception as error:
        cause = first_cause(error)
        if not isinstance(cause, BenchError):
            raise  # our own mistake, with its traceback
        raise BenchError(f"{name}: {cause}") from error


def _process(
    contestant: Contestant, pair: WrittenPair, port: int, log: int
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        contestant.command(pair, port),
        env=contestant.process_environ(),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    )


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


async def _wait_ready(process: subprocess.Popen[bytes], address: str, clients: ChatClients) -> None:
    host, port = address.split(":")
    why = "nobody listens"
    with anyio.move_on_after(READY_S_MAX):
        while process.poll() is None:
            with socket.socket() as tried:
                listening = tried.connect_ex((host, int(port))) == 0
            if listening and not (why := await _refusal(address, clients)):
                return
            await anyio.sleep(_POLL_S)
        raise BenchError(f"ended with exit code {process.returncode} before it served")
    raise BenchError(f"was not ready within {READY_S_MAX:.0f} s: {why}")


async def _refusal(address: str, clients: ChatClients) -> str:
    """Asks for one greedy token; why there was none, "" if there was."""
    try:
        async with clients(address, 1) as (client,):
            await client.ask([Message("user", "What is a river?")], 1)
    except (BenchError, SapwoodError, grpc.RpcError, OSError) as error:
        return str(error) or type(error).__name__
    return ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, then SIGKILL: a peer that does not end is no finding of this benchmark."""
    process.terminate()
    try:
        process.wait(PEER_STOP_S_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def contestants() -> dict[str, Contestant]:
    """By name, in the order of tables."""
    return {made.name: made for made in (_ours("ours", None), _ours("depth 0", 0), *_peers())}


def _ours(name: str, depth: int | None) -> Contestant:
    title = "Sapwood" if depth is None else "Sapwood, depth 0"
    return Contestant(
        name,
        title,
        partial(_our_command, depth),
        lambda pair: partial(our_clients, draft_tokens=depth),
        drafts=depth is None,
    )


def _our_command(depth: int | None, pair: WrittenPair, port: int) -> list[str]:
    """Without metrics' fixed port, so that two can run; all else as it comes."""
    flags = ["--model", str(pair.target), "--draft", str(pair.drafter)]
    addresses = ["--listen", f"127.0.0.1:{port}", "--metrics", "127.0.0.1:0"]
    pinned = [] if depth is None else ["--draft-depth", str(depth)]
    return [sys.executable, "-m", "sapwood", "serve", *flags, *addresses, *pinned]


def _peers() -> Sequence[Contestant]:
    return (
        Contestant(
            "mlx_lm",
            "mlx_lm.server",
            _mlx_lm_command,
            lambda pair: partial(http_clients, model="default_model"),
            ENVIRONMENTS["mlx-lm"],
        ),
        Contestant(
            "mlx_vlm",
            "mlx_vlm.server, MTP, APC",
            _mlx_vlm_command,
            lambda pair: partial(http_clients, model=str(pair.target)),
            ENVIRONMENTS["mlx-vlm"],
            # In memory alone. By default a checkpoint lies every 2,048 tokens and two are kept:
            # a system prompt of 550 tokens would never be found.
            {
                "APC_ENABLED": "1",
                "APC_DISK_ENABLED": "0",
                "APC_NUM_BLOCKS": "4096",
                "APC_CHECKPOINT_INTERVAL_TOKENS": "256",
                "APC_CHECKPOINT_ENTRIES": "64",
            },
            counts=(1, 8, 16),
            drafts=True,
        ),
        Contestant(
            "smg",
            "SMG's MLX servicer",
            _smg_command,
            lambda pair: smg_clients,
            ENVIRONMENTS["smg"],
            heavy_counts=(1, 8),
        ),
    )


def _mlx_lm_command(pair: WrittenPair, port: int) -> list[str]:
    """All 32 clients in one batch, prompts too: the default prefills 8 at a time."""
    python = str(ENVIRONMENTS["mlx-lm"].python)
    width = ["--prompt-concurrency", "32", "--decode-concurrency", "32"]
    served = ["--model", str(pair.target), "--host", "127.0.0.1", "--port", str(port)]
    return [python, "-m", "mlx_lm", "server", *served, *width, "--log-level", "WARNING"]


def _mlx_vlm_command(pair: WrittenPair, port: int) -> list[str]:
    """The block of 4 (three drafts) is the drafter's own and what its documentation shows."""
    python = str(ENVIRONMENTS["mlx-vlm"].python)
    served = ["--model", str(pair.target), "--host", "127.0.0.1", "--port", str(port)]
    drafting = ["--draft-model", str(pair.drafter), "--draft-kind", "mtp"]
    return [python, "-m", "mlx_vlm.server", *served, *drafting, "--log-level", "WARNING"]


def _smg_command(pair: WrittenPair, port: int) -> list[str]:
    """Decodes 32 together by default; it prefills as many here, as mlx_lm.server does."""
    python = str(ENVIRONMENTS["smg"].python)
    served = ["--model", str(pair.target), "--host", "127.0.0.1", "--port", str(port)]
    width = ["--prefill-batch-size", "32", "--completion-batch-size", "32"]
    return [python, "-m", "smg_grpc_servicer.mlx.server", *served, *width]

"""A real daemon process with a real model, over sockets: R1, R2, M1 as clients see them.

What a client asked is written as the Request that it must have become, so that the oracle can judge
what came back.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest

from sapwood import (
    AsyncClient,
    CacheStats,
    Cancelled,
    DeadlineExceeded,
    Delta,
    Finish,
    Prefill,
    ResourceExhausted,
    SapwoodError,
)
from sapwood.daemon.demo.process import DaemonProcess, running, serve_command
from sapwood.model import device
from sapwood.scheduler.events import Request
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.sampling import Sampling
from tests.daemon.process.processes import at_rest
from tests.model.reference import checkpoint
from tests.sim.replay import replay
from tests.system.oracle import check_usage, end_of
from tests.system.pairs import oracle, pair, prompts, replies
from tests.system.stack import budget_bytes

NAME = "e2b-tiny"
START_S_MAX = 90.0
ENDLESS = 8000  # tokens: nobody waits for that many
LIMITS = Limits(slots_max=12, prefill_tokens_max=64)


@contextmanager
def serving(folder: Path, *flags: str) -> Iterator[DaemonProcess]:
    config = folder / "limits.toml"
    config.write_text("[limits]\nslots_max = 12\nprefill_tokens_max = 64\n")
    directories = (str(checkpoint(name).path) for name in (NAME, f"{NAME}-assistant"))
    model, draft = directories
    command = serve_command("--model", model, "--draft", draft, "--config", str(config), *flags)
    with running(command, os.environ, time.monotonic() + START_S_MAX) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with serving(tmp_path_factory.mktemp("daemon")) as daemon:
        yield daemon


@dataclass
class Asked:
    """One client's request in both forms, and what has come back."""

    request: Request
    options: dict[str, Any]
    tokens: list[int]
    text: str = ""
    prefills: int = 0
    cached: int = -1
    finish: Finish | None = None

    async def read(
        self, address: str, leave: Callable[[Asked], bool] = lambda asked: False
    ) -> None:
        """With a connection of its own; `leave` closes it in the middle of the reply."""
        async with AsyncClient(address) as client:
            stream = client.generate(self.request.prompt, **self.options)
            async for event in stream:
                assert self.finish is None, f"R1: {event} after the end"
                match event:
                    case Prefill():
                        assert not self.tokens, "R1: progress after the first delta"
                        self.prefills, self.cached = self.prefills + 1, event.cached_tokens
                    case Delta():
                        assert self.prefills, "R1: a delta before any progress"
                        self.tokens += event.token_ids
                        self.text += event.text
                    case Finish():
                        self.finish = event
                if leave(self):
                    return

    def check(self) -> None:
        """Complete, in order, and what the request gives alone."""
        assert self.finish is not None
        request, loaded = self.request, pair(NAME)
        eos = loaded.tokenizer.eos_token_ids
        expected = end_of(request, self.tokens, loaded.tokenizer.token_bytes, eos)
        assert expected is not None, (self.tokens, self.finish)
        reason, stop = self.finish.reason.value, self.finish.stop_sequence
        assert (self.text, reason, stop) == (expected.text, expected.reason, expected.stop_sequence)
        check_usage(request, self.finish.usage, len(self.tokens), self.cached, reason)
        assert not oracle(NAME).judge(request.prompt, self.tokens, request.sampling).faults


def ask(prompt: tuple[int, ...], max_tokens: int, **options: Any) -> Asked:
    """Greedy unless a seed is given; stop options as api.md has them."""
    seed = options.get("seed")
    sampling = Sampling()
    if seed is not None:
        options |= {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.01}
        sampling = Sampling(0.8, 40, 0.95, 0.01, True, seed)
    options = {"temperature": 0.0, "ignore_eos": True, "max_tokens": max_tokens} | options
    request = Request(
        id=0,
        root=b"",
        prompt=prompt,
        max_tokens=max_tokens,
        sampling=sampling,
        stop=tuple(options.get("stop", ())),
        stop_token_ids=frozenset(options.get("stop_token_ids", ())),
        ignore_eos=options["ignore_eos"],
        depth=options.get("draft_tokens"),
    )
    return Asked(request, options, [])


def anything(random: Random) -> Asked:
    """A known beginning and a tail, and every kind of end."""
    beginning = random.choice(prompts(NAME))
    # From 110: below are control tokens, which divide the reply.
    tail = tuple(random.randrange(110, 900) for _ in range(random.randint(0, 12)))
    options: dict[str, Any] = {}
    if random.random() < 0.4:
        options["seed"] = random.getrandbits(64)
    if random.random() < 0.6:
        options["draft_tokens"] = random.choice((0, 1, 4, 8))
    if random.random() < 0.3:
        options["stop"] = random.choice((["e"], ["th", "a"], ["zq", "in"]))
    if random.random() < 0.3:
        options["stop_token_ids"] = random.sample(range(110, 1000), 64)
    options["ignore_eos"] = random.random() < 0.7
    return ask(beginning + tail, random.choice((1, 2, 17, 40)), **options)


async def gathered(*jobs: Awaitable[None]) -> None:
    async with asyncio.TaskGroup() as group:
        for job in jobs:
            group.create_task(_awaited(job))


async def _awaited(job: Awaitable[None]) -> None:
    await job


def test_r1_32_clients_at_once_are_served_completely_and_in_order(daemon: DaemonProcess) -> None:
    """Greedy and seeded, all depths, stop strings, stop ids, EOS, max_tokens, hits and misses."""
    random = Random(32)
    asked = [anything(random) for _ in range(32)]
    asyncio.run(gathered(*(one.read(daemon.address) for one in asked)))
    for one in asked:
        one.check()
    reasons = {one.finish.reason.value for one in asked if one.finish}
    assert reasons == {"stop", "stop_sequence", "length"}
    assert sum(one.finish.usage.accepted_tokens for one in asked if one.finish) > 0
    assert sum(one.cached > 0 for one in asked) > 0
    stats = asyncio.run(at_rest(daemon.address))
    assert stats.hit_tokens >= sum(one.cached for one in asked)


def test_a_reply_with_a_placeholder_goes_on_by_its_ids(daemon: DaemonProcess) -> None:
    """96 stands for an image: the model may write it, and the next turn holds it."""
    first = ask(prompts(NAME)[0], 3, logit_bias={96: 100.0})
    asyncio.run(first.read(daemon.address))
    assert first.tokens == [96] * 3
    second = ask((*first.request.prompt, *first.tokens, 300, 93, 97), 12, draft_tokens=3)
    asyncio.run(second.read(daemon.address))
    second.check()
    assert second.cached == len(first.request.prompt) + 2


@pytest.mark.parametrize("depth", [0, 3])
def test_a_second_turn_as_token_ids_finds_the_first(daemon: DaemonProcess, depth: int) -> None:
    """Within two tokens: the bonus is in no cache, and one token is evaluated anew."""
    prompt = (*prompts(NAME)[3], 9 + depth)
    first = ask(prompt, 30, draft_tokens=depth)
    asyncio.run(first.read(daemon.address))
    second = ask((*prompt, *first.tokens, 7, 8), 10, draft_tokens=depth)
    asyncio.run(second.read(daemon.address))
    first.check()
    second.check()
    assert second.cached >= len(prompt) + len(first.tokens) - 2


def test_r2_whoever_leaves_disturbs_nobody_and_leaves_a_prefix(daemon: DaemonProcess) -> None:
    """Cancels, closed connections and deadlines at random moments, among clients that stay."""
    random, address = Random(7), daemon.address
    staying = [ask(prompts(NAME)[i % 6], 48, draft_tokens=i % 9) for i in range(8)]
    leaving = [
        ask(tuple(random.randrange(110, 900) for _ in range(random.randint(30, 300))), ENDLESS)
        for _ in range(18)
    ]

    async def leave(one: Asked, how: str) -> None:
        if how == "deadline":
            one.options["timeout"] = random.uniform(0.005, 0.6)
            with pytest.raises(DeadlineExceeded):
                await one.read(address)
        elif how == "close":  # the connection goes with the client
            count = random.choice((0, 1, 12))
            await one.read(address, lambda asked: len(asked.tokens) >= count)
        else:
            task = asyncio.ensure_future(one.read(address))
            await asyncio.sleep(random.uniform(0, 0.5))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def everybody() -> CacheStats:
        left = (leave(one, ("deadline", "close", "cancel")[i % 3]) for i, one in enumerate(leaving))
        await gathered(*(one.read(address) for one in staying), *left)
        stats = await at_rest(address)
        again = [ask(one.request.prompt, 2) for one in leaving if one.tokens]
        await gathered(*(one.read(address) for one in again))
        assert again, "everybody left before the first token"
        for one in again:
            assert one.cached == len(one.request.prompt) - 1, "what was computed is kept"
        return stats

    stats = asyncio.run(everybody())
    for i, one in enumerate(staying):
        one.check()
        assert tuple(one.tokens) == replies(NAME)[i % 6][:48]
    memory = stats.memory
    stored = sum(stats.stored.values())
    # Beside it what MLX may give beyond what is asked, for each of two buffers a node.
    reused = 2 * stats.nodes * device.reuse_bytes()
    assert 0 < stored <= memory.snapshots_bytes <= stored + reused
    held = memory.weights_bytes + memory.snapshots_bytes + memory.other_bytes
    held += memory.free_bytes + memory.mlx_cache_bytes
    assert held == memory.budget_bytes


@pytest.mark.long
def test_m1_in_a_small_budget_every_answer_is_right_or_out_of_memory(tmp_path: Path) -> None:
    """Room for three sequences of 256 tokens and little more; one client asks for too much."""
    budget = budget_bytes(pair(NAME), LIMITS, 3, 256, 150)
    random = Random(3)
    asked = [anything(random) for _ in range(24)]
    with serving(tmp_path, "--memory", str(budget)) as daemon:

        async def too_large() -> None:
            with pytest.raises(ResourceExhausted) as refused:
                await ask((5, 6, 7), 20_000).read(daemon.address)
            assert refused.value.reason == "OUT_OF_MEMORY"

        asyncio.run(gathered(*(one.read(daemon.address) for one in asked), too_large()))
        stats = asyncio.run(at_rest(daemon.address))
    for one in asked:
        one.check()
    assert stats.memory.budget_bytes == budget
    assert stats.memory.free_bytes >= 0
    assert stats.evictions > 0, "it was not too small for everything"


def test_l8_a_recorded_daemon_is_played_again_plan_by_plan(tmp_path: Path) -> None:
    """The real pair, evictions, all kinds of ends and a cancel; byte for byte without the model."""
    file, random = tmp_path / "record", Random(8)
    budget = budget_bytes(pair(NAME), LIMITS, 3, 256, 150)
    asked = [anything(random) for _ in range(16)]
    with serving(tmp_path, "--record", str(file), "--memory", str(budget)) as daemon:
        leaving = ask(prompts(NAME)[0], 150)
        readers = [one.read(daemon.address) for one in asked]
        readers.append(leaving.read(daemon.address, lambda one: len(one.tokens) > 5))
        asyncio.run(gathered(*readers))
        stats = asyncio.run(at_rest(daemon.address))
    for one in asked:
        one.check()
    assert stats.evictions > 0
    with file.open() as lines:
        assert replay(lines) > 30


def test_a_stream_that_was_cancelled_ends_as_cancelled(daemon: DaemonProcess) -> None:
    async def cancelled() -> None:
        async with AsyncClient(daemon.address) as client:
            stream = client.generate((2, 5, 9), max_tokens=500, ignore_eos=True, temperature=0.0)
            error: SapwoodError | None = None
            try:
                async for event in stream:
                    if isinstance(event, Delta):
                        stream.cancel()
            except Cancelled as caught:
                error = caught
            assert error is not None

    asyncio.run(cancelled())
    asyncio.run(at_rest(daemon.address))

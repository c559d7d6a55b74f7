"""S9: with strict numerics a request's tokens and log-probabilities are the same bits however it is
served: alone or in company, at any depth, cold, behind a hit or by reference, in other slices, and
after it was parked.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest

from sapwood import AsyncClient, CacheOptions, Delta
from sapwood.daemon.demo.process import running, serve_command
from sapwood.model.pair import Pair, load_pair, model_facts
from sapwood.scheduler.core.demand import Demand, slots_bytes
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.plan import StepPlan
from sapwood.scheduler.sampling import Sampling
from tests.model.reference import PROMPTS, checkpoint, golden
from tests.system.device_bytes import exact_buffers
from tests.system.stack import GREEDY, Stack, Stream

FAMILIES = ("e2b-tiny", "a4b-tiny", "e4b-tiny", "12b-tiny", "31b-tiny")
TILE = 64
SAMPLINGS = (
    GREEDY,
    Sampling(0.9, 40, seeded=True, noise_key=7),
    Sampling(1.1, top_p=0.95, seeded=True, noise_key=8, repetition_penalty=1.1),
)
Told = tuple[tuple[int, ...], tuple[Any, ...]]


def quick(name: str) -> list[Any]:
    """All families, those but one as long tests."""
    return [pytest.param(f, marks=() if f == name else pytest.mark.long) for f in FAMILIES]


@cache
def pair(name: str) -> Pair:
    return load_pair(checkpoint(name), checkpoint(f"{name}-assistant"), "float32", strict=True)


@cache
def story(name: str) -> tuple[int, ...]:
    return tuple(int(t) for i in PROMPTS for t in golden(name)[f"p{i}_ids"])


def told(stream: Stream) -> Told:
    assert stream.tokens and stream.finished
    return tuple(stream.tokens), tuple((p.logprob, p.alternatives) for p in stream.logprobs)


def alone(name: str, asked: Sequence[tuple[Sequence[int], Sampling]], count: int) -> list[Told]:
    """Each by itself, cold, without a drafter."""
    stack = Stack(replace(pair(name), assistant=None), row_tokens_min=3 * TILE)
    replies = [
        told(stack.generate(p, count, sampling=s, top_logprobs=2, cache_bypass=True))
        for p, s in asked
    ]
    assert not stack.core.stats().parks
    stack.close()
    return replies


@pytest.mark.parametrize("name", quick("a4b-tiny"))
def test_the_same_bits_in_company_at_any_depth_behind_any_hit(name: str) -> None:
    """S9."""
    random = Random(name)
    # Beyond a tile and the window, around a tile's end, and short.
    prompts = [story(name)[:150], story(name)[:129], story(name)[:63], story(name)[70:81]]
    asked = [(prompt, sampling) for prompt in prompts for sampling in SAMPLINGS]
    due = alone(name, asked, 10)
    limits = Limits(
        slots_max=8, prefill_tokens_max=48, referred_reads_min=1, referred_edge_tokens_min=1
    )
    stack = Stack(pair(name), limits, row_tokens_min=3 * TILE)
    plans: list[StepPlan | None] = []
    for depths in ((0, 2), (1, 3, 8, None)):
        order = random.sample(range(len(asked)), len(asked))
        streams = {}
        for i in order:
            prompt, sampling = asked[i]
            options = {"sampling": sampling, "depth": random.choice(depths)}
            streams[i] = stack.submit(prompt, 10, top_logprobs=2, **options)
            while random.random() < 0.5:
                plans.append(stack.step())
        while stack.core.has_work:
            plans.append(stack.step())
        assert [told(streams[i]) for i in range(len(asked))] == due
    admits = [admit for plan in plans if plan is not None for admit in plan.admits]
    assert any(admit.base for admit in admits), "nothing was held by reference"
    assert all(admit.base % TILE == 0 for admit in admits)
    usages = [stream.finished.usage for stream in stack.streams]
    assert sum(u.accepted_tokens for u in usages) > 0 and sum(u.cached_tokens for u in usages) > 0
    stack.close()


@pytest.mark.parametrize("name", quick("e2b-tiny"))
def test_the_same_bits_after_parking(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [(story(name)[i * 30 : i * 30 + 40], SAMPLINGS[i % 3]) for i in range(5)]
    due = alone(name, asked, 50)
    limits = Limits(slots_max=6, prefill_tokens_max=40, reply_tokens_guess=1)
    with exact_buffers(monkeypatch):
        facts = replace(model_facts(pair(name), limits.draft_depth_max), row_tokens_min=TILE)
        wide = facts.draw_bytes_per_row(SAMPLINGS[2])
        room = slots_bytes(facts, limits, [Demand(TILE, wide)] * 3)
        room += 60 * (facts.full_bytes_per_token + facts.sliding_bytes_per_token)
        stack = Stack(pair(name), limits, facts.weights_bytes + room, row_tokens_min=TILE)
        streams = [stack.submit(p, 50, sampling=s, top_logprobs=2) for p, s in asked]
        stack.run()
    assert stack.core.stats().parks
    assert [told(stream) for stream in streams] == due
    stack.close()


@dataclass(frozen=True)
class Asked:
    prompt: tuple[int, ...]
    options: dict[str, Any]

    async def told(self, client: AsyncClient, depth: int | None, bypass: bool) -> Told:
        tokens: list[int] = []
        logprobs: list[Any] = []
        cached = CacheOptions(bypass=bypass)
        async with client.generate(
            self.prompt, draft_tokens=depth, cache=cached, **self.options
        ) as events:
            async for event in events:
                if isinstance(event, Delta):
                    tokens += event.token_ids
                    logprobs += event.logprobs
        return tuple(tokens), tuple(logprobs)


@contextmanager
def serving(name: str, folder: Path) -> Iterator[str]:
    config = folder / "limits.toml"
    config.write_text("[limits]\nslots_max = 12\nprefill_tokens_max = 64\n")
    model, draft = (str(checkpoint(part).path) for part in (name, f"{name}-assistant"))
    flags = ("--model", model, "--draft", draft, "--config", str(config))
    command = serve_command(*flags, "--numerics", "strict")
    with running(command, os.environ, time.monotonic() + 90) as daemon:
        yield daemon.address


def requests(name: str, count: int) -> list[Asked]:
    random, told = Random(f"wire {name}"), story(name)
    asked = []
    for _ in range(count):
        prompt = told[: random.randrange(1, 120)] if random.random() < 0.7 else ()
        tail = tuple(random.randrange(2, 900) for _ in range(random.randrange(1, 40)))
        options: dict[str, Any] = {"max_tokens": random.randrange(1, 14), "ignore_eos": True}
        options |= {"temperature": 0.0, "top_logprobs": 1}
        if random.random() < 0.5:
            options |= {"temperature": random.choice((0.7, 1.1)), "seed": random.getrandbits(40)}
            options |= {"top_k": random.choice((0, 40)), "top_p": random.choice((1.0, 0.9))}
        asked.append(Asked(prompt + tail, options))
    return asked


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", FAMILIES)
def test_five_hundred_requests_over_the_wire(name: str, tmp_path: Path) -> None:
    """S9."""
    asked = requests(name, 500)

    async def ask(address: str) -> tuple[list[Told], dict[int, Told]]:
        async with AsyncClient(address) as client:
            assert (await client.get_model()).numerics == "strict"
            due = [await each.told(client, 0, bypass=True) for each in asked]
            random, found = Random(name), {}
            todo = random.sample(range(len(asked)), len(asked))

            async def one_after_another() -> None:
                while todo:
                    i = todo.pop()
                    depth = random.choice((None, 0, 1, 3, 8))
                    found[i] = await asked[i].told(client, depth, random.random() < 0.2)

            async with anyio.create_task_group() as tasks:
                for _ in range(12):
                    tasks.start_soon(one_after_another)
        return due, found

    with serving(name, tmp_path) as address:
        due, found = anyio.run(partial(ask, address))
    different = [i for i in range(len(asked)) if found[i] != due[i]]
    assert not different, [(i, due[i], found[i]) for i in different[:3]]

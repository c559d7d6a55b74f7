"""S9 over the wire: what each request gets from a strict daemon in random company is, to the bit,
what it gets alone, cold and without a drafter from another one.

In the company's life: parking, because memory is short; a restart, after which prefixes come from
disk; hits; every depth; candidates, penalties, and replies that are held to an expression or a
schema.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest

from sapwood import AsyncClient, CacheOptions, Client, Delta
from sapwood.daemon.demo.process import DaemonProcess, running, serve_command
from sapwood.model.pair import Pair, model_facts
from sapwood.scheduler.core.demand import Demand, slots_bytes
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.sampling import Sampling
from tests.model.reference import checkpoint
from tests.system.test_disk import metric, written
from tests.system.test_strict import FAMILIES, TILE, pair, story

CLIENTS = 12
LIMITS = Limits(
    slots_max=12,
    prefill_tokens_max=64,
    reply_tokens_guess=1,
    parks_max=12,
    # On a busy machine nobody is to be turned away for the time that it takes.
    queue_s_max=1500.0,
    mask_s_max=60.0,
    constraint_build_s_max=60.0,
)
KNOWN_TOKENS = 167  # of a beginning that many share: more than a block of the disk's
ROW_TOKENS = 3 * TILE  # of the smallest row, past which it grows
ALIKE = ("", "[a-z]{1,12}", "(yes|no|maybe)[!?]{0,4}")
SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["new", "used"]}, "count": {"type": "integer"}},
    "required": ["kind"],
    "additionalProperties": False,
}
# By candidate: its tokens, and what is told of each.
Told = dict[int, tuple[tuple[int, ...], tuple[Any, ...]]]


@dataclass(frozen=True)
class Asked:
    prompt: tuple[int, ...]
    options: dict[str, Any]

    async def told(self, client: AsyncClient, depth: int | None, bypass: bool) -> Told:
        count = self.options.get("candidates", 1)
        tokens: list[list[int]] = [[] for _ in range(count)]
        logprobs: list[list[Any]] = [[] for _ in range(count)]
        cached = CacheOptions(bypass=bypass)
        async with client.generate(
            self.prompt, draft_tokens=depth, cache=cached, **self.options
        ) as events:
            async for event in events:
                if isinstance(event, Delta):
                    tokens[event.candidate] += event.token_ids
                    logprobs[event.candidate] += event.logprobs
        return {i: (tuple(tokens[i]), tuple(logprobs[i])) for i in range(count)}


def requests(name: str, count: int) -> list[Asked]:
    """Beginnings that many share, some up to where a row grows within the reply."""
    random, known = Random(f"wire {name}"), (story(name) * 2)[:KNOWN_TOKENS]
    asked = []
    for _ in range(count):
        long = random.random() < 0.2
        prompt = known if long else known[: random.randrange(120)]
        tail = tuple(random.randrange(2, 900) for _ in range(random.randrange(1, 25)))
        tokens_max = random.randrange(20, 40) if long else random.randrange(1, 14)
        asked.append(Asked(prompt + tail, _options(random, tokens_max)))
    return asked


def _options(random: Random, tokens_max: int) -> dict[str, Any]:
    options: dict[str, Any] = {"max_tokens": tokens_max, "temperature": 0.0, "top_logprobs": 1}
    if random.random() < 0.5:
        options |= {"temperature": random.choice((0.7, 1.1)), "seed": random.getrandbits(40)}
        options |= {"top_k": random.choice((0, 40)), "top_p": random.choice((1.0, 0.9))}
        options |= {"candidates": random.choice((1, 1, 1, 2, 3))}
    if random.random() < 0.2:
        options |= {"repetition_penalty": 1.2, "frequency_penalty": 0.4}
    held = random.choice((*ALIKE, SCHEMA)) if random.random() < 0.4 else ""
    if isinstance(held, dict):
        options |= {"json_schema": held}
    elif held:
        options |= {"regex": held}
    else:
        options |= {"ignore_eos": True}
    return options


def short_of_memory(strict: Pair) -> int:
    """Bytes of a budget in which not all slots have room once some of their rows grow."""
    facts = model_facts(strict, LIMITS.draft_depth_max)
    wide = facts.draw_bytes_per_row(Sampling(1.0, top_p=0.9, seeded=True), masked=True)
    slots = [Demand(2 * ROW_TOKENS, wide)] * 3
    return facts.weights_bytes + slots_bytes(facts, LIMITS, slots)


@contextmanager
def serving(name: str, folder: Path, *flags: str) -> Iterator[DaemonProcess]:
    config = folder / "limits.toml"
    given = {
        name: value for name, value in asdict(LIMITS).items() if value != asdict(Limits())[name]
    }
    lines = [f"{name} = {value}" for name, value in given.items()]
    config.write_text("\n".join(["[limits]", *lines]))
    model, draft = (str(checkpoint(part).path) for part in (name, f"{name}-assistant"))
    base = ("--model", model, "--config", str(config), "--numerics", "strict")
    command = serve_command(*base, "--draft", draft if flags else "none", *flags)
    with running(command, os.environ, time.monotonic() + 90) as daemon:
        yield daemon


async def alone(asked: list[Asked], address: str) -> list[Told]:
    async with AsyncClient(address) as client:
        assert (await client.get_model()).numerics == "strict"
        return [await each.told(client, None, bypass=True) for each in asked]


async def in_company(asked: list[Asked], which: list[int], address: str) -> dict[int, Told]:
    """Each of `which`, a dozen at a time, in random order and at random depths."""
    random, found = Random(str(which)), {}
    todo = random.sample(which, len(which))

    async def one_after_another(client: AsyncClient) -> None:
        while todo:
            i = todo.pop()
            depth = random.choice((None, 0, 1, 3, 8))
            bypass = len(which) > 1 and random.random() < 0.1
            found[i] = await asked[i].told(client, depth, bypass)

    async with AsyncClient(address) as client, anyio.create_task_group() as tasks:
        for _ in range(CLIENTS):
            tasks.start_soon(one_after_another, client)
    return found


def check(name: str, count: int, folder: Path) -> None:
    asked = requests(name, count)
    with serving(name, folder) as daemon:
        due = anyio.run(partial(alone, asked), daemon.address)
    short = ("--memory", str(short_of_memory(pair(name))), "--cache-dir", str(folder / "cache"))
    found: dict[int, Told] = {}
    parks = 0.0
    halves = list(range(0, count, 2)), list(range(1, count, 2))
    for life, which in enumerate(halves):
        with serving(name, folder, *short) as daemon:
            if life:  # behind a prefix that only the disk has
                long = next(i for i in which if len(asked[i].prompt) > KNOWN_TOKENS)
                found |= anyio.run(partial(in_company, asked, [long]), daemon.address)
                assert metric(daemon, 'page_in_bytes_total{tier="disk"}') > 0
                which = [i for i in which if i != long]
            found |= anyio.run(partial(in_company, asked, which), daemon.address)
            assert metric(daemon, "prefix_cached_tokens_total") > 0
            assert metric(daemon, 'accepted_tokens_total{position="1"}') > 0
            parks += metric(daemon, "requests_parked_total")
            if not life:  # something that is whole, where much was thinned for want of memory
                last = next(i for i in reversed(which) if len(asked[i].prompt) > KNOWN_TOKENS)
                with Client(daemon.address) as client:
                    client.clear_cache()
                anyio.run(partial(in_company, asked, [last]), daemon.address)
                written(daemon)
    different = [i for i in range(count) if found[i] != due[i]]
    assert not different, [(i, asked[i], due[i], found[i]) for i in different[:3]]
    assert parks > 0, "nobody was parked"


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", FAMILIES)
def test_five_hundred_requests(name: str, tmp_path: Path) -> None:
    """S9."""
    check(name, 500, tmp_path)

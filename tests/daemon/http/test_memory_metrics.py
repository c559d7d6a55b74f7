"""What the metrics say of the device's own account."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from bench.soak import Series
from sapwood.daemon.demo.scrape import parse_metrics
from sapwood.daemon.engine.account import MEMORY_KINDS, MemoryUse
from sapwood.daemon.engine.loaded import Loaded
from sapwood.scheduler.limits import Limits
from tests.daemon.conftest import Running, collect, prompt_of, running, stats, until
from tests.daemon.fakes import FACTS, FakeDevice, make_loader
from tests.daemon.http.test_metrics import scrape, values

pytestmark = pytest.mark.anyio


def memory_of(run: Running) -> MemoryUse:
    found = run.daemon._engine.published
    assert found is not None
    return found.memory


def reserved(memory: MemoryUse) -> int:
    return memory.budget - memory.other - memory.free - memory.mlx_cache


def agrees(memory: MemoryUse, active: int) -> bool:
    """Whether it is of a moment between two steps, in which arrays held so many bytes."""
    return memory.unaccounted == active - reserved(memory)


async def test_what_the_device_holds_is_held_against_the_ledger() -> None:
    """And at every step the device hears how much is reserved for it."""
    told: list[int] = []
    frees: list[int] = []

    def follow(workspace_bytes: int, free_bytes: int) -> tuple[int, int]:
        told.append(workspace_bytes)
        frees.append(free_bytes)
        return 123_456, 789

    def load() -> Loaded:
        return replace(make_loader(FakeDevice(), Limits())(), follow=follow, other_bytes=1000)

    async with running(load=load) as run:
        await collect(run.generation.Generate(prompt_of(*range(5, 45), max_tokens=30)))
        await until(lambda: memory_of(run).live == 0 and agrees(memory_of(run), 123_456))
        measured = values(await scrape(run))
    kinds = {kind: measured[f"sapwood_memory_bytes{{{kind}}}"] for kind in MEMORY_KINDS}
    assert sum(kinds.values()) == measured["sapwood_memory_budget_bytes"]
    assert (kinds["mlx_cache"], kinds["other"]) == (789, 1000)
    free = kinds["free"] + 789
    assert free in frees
    ledger = measured["sapwood_memory_budget_bytes"] - 1000 - free
    assert measured["sapwood_memory_unaccounted_bytes"] == 123_456 - ledger
    assert told[0] == told[-1] == 0 < max(told)


async def test_rows_that_a_plan_gives_back_are_held_by_somebody_until_it_is_carried_out() -> None:
    """The ledger is of the plan, the arrays of the step before: nobody is to be alerted."""
    device = FakeDevice(gated=True)

    def load() -> Loaded:
        made = make_loader(device, Limits())()

        def follow(workspace_bytes: int, free_bytes: int) -> tuple[int, int]:
            return (held if device.slots else 0), 0

        return replace(made, follow=follow)

    held = 0
    async with running(load=load) as run:
        stream = run.generation.Generate(prompt_of(*range(5, 45), max_tokens=3))
        ended = asyncio.create_task(collect(stream))
        await until(lambda: stats(run).memory.live > 0)
        stepped = 0
        while not ended.done():
            if device.begun > stepped and memory_of(run).live:
                held = reserved(memory_of(run))
                device.step()
                stepped += 1
            await asyncio.sleep(0.001)
        assert device.slots and memory_of(run).live == 0, "the row's plan is not carried out"
        assert memory_of(run).unaccounted <= 0
        device.ungate()
        await until(lambda: not device.slots and memory_of(run).unaccounted < 0)


async def test_a_soak_looks_for_nothing_that_a_daemon_does_not_publish() -> None:
    """Else every report would name it missing."""
    series = Series()
    load = make_loader(FakeDevice(), Limits(), replace(FACTS, weights_buffers=7))
    async with running(load=load) as run:
        series.add(parse_metrics(await scrape(run)))
    assert series.missing == []
    buffers = {key: seen["last"] for key, seen in series.found.items() if "buffers" in key}
    assert buffers == {
        "memory_buffers weights": 7, "memory_buffers live": 0, "memory_buffers snapshots": 0,
    }  # fmt: skip

"""Quotas of principals: at the limit, past it, what is given back, and that others are not hurt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from sapwood.daemon.rpc.principals import Directory, Principal
from sapwood.daemon.rpc.quotas import Accounts, Stake
from sapwood.daemon.rpc.refusals import draining
from sapwood.daemon.settings.principals import PrincipalSettings, Quotas
from sapwood.scheduler.events import Delta, Failed, Progress
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.reasons import Reason, Refused
from sapwood.v1 import generation_pb2 as pb
from tests.daemon.conftest import (
    Running,
    collect,
    details_of,
    open_rpcs,
    prompt_of,
    reason_of,
    running,
    stats,
    until,
)
from tests.daemon.fakes import FakeDevice
from tests.daemon.http.test_metrics import scrape, values
from tests.daemon.rpc.conftest import ONE_SLOT
from tests.daemon.tenants import Shown, Tokens, shown

pytestmark = pytest.mark.anyio


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def principal(**quotas: int) -> Principal:
    return Directory({"a": PrincipalSettings(quotas=Quotas(**quotas))}).named("a")


async def let_in(stake: Stake, prompt: int = 1, reply: int = 1) -> None:
    stake.enter()
    await stake.turn(prompt, reply)


async def refused(stake: Stake, prompt: int = 1, reply: int = 1) -> Refused:
    with pytest.raises(Refused) as caught:
        await let_in(stake, prompt, reply)
    assert caught.value.reason is Reason.CLIENT_QUOTA
    assert caught.value.retry_after_s
    return caught.value


async def test_tokens_a_minute_at_the_limit_and_past_it() -> None:
    """What a request may still use counts as long as it runs."""
    for reply_tokens, fits in ((20, True), (21, False)):
        accounts, who = Accounts(60, Clock()), principal(tokens_per_minute_max=100)
        with accounts.stake(who) as first, accounts.stake(who) as second:
            await let_in(first, 20, 40)
            if fits:
                await let_in(second, 20, reply_tokens)
            else:
                await refused(second, 20, reply_tokens)


async def test_what_is_used_is_forgotten_within_a_minute() -> None:
    clock = Clock()
    accounts, who = Accounts(60, clock), principal(tokens_per_minute_max=120)
    with accounts.stake(who) as stake:
        await let_in(stake, 20, 100)
        stake.observe(Progress(1, 0, 20, 20))
        for _ in range(10):
            stake.observe(Delta(1, "", tuple(range(10))))
    with accounts.stake(who) as stake:
        refusal = await refused(stake, 1, 1)
        assert refusal.retry_after_s == pytest.approx(1)
        clock.now += 1
        await let_in(stake, 1, 1)


async def test_what_a_reply_does_not_use_is_given_back_once() -> None:
    clock = Clock()
    accounts, who = Accounts(60, clock), principal(tokens_per_minute_max=120)
    with accounts.stake(who) as long:
        await let_in(long, 10, 110)
        clock.now += 600  # what is reserved is not forgotten: it may all be used at the end
        with accounts.stake(who) as other:
            await refused(other)
        long.observe(Progress(1, 0, 10, 10))
        long.observe(Delta(1, "", (1, 2)))
    with accounts.stake(who) as stake:
        await let_in(stake, 100, 8)
        with accounts.stake(who) as other:
            await refused(other, 1, 0)


async def test_what_never_began_costs_nothing() -> None:
    accounts, who = Accounts(60, Clock()), principal(tokens_per_minute_max=10)
    for _ in range(3):
        with accounts.stake(who) as stake:
            await let_in(stake, 5, 5)
            stake.observe(Failed(1, Reason.QUEUE_FULL, "full"))


async def test_more_than_a_minutes_worth_is_served_after_a_whole_one() -> None:
    clock = Clock()
    accounts, who = Accounts(60, clock), principal(tokens_per_minute_max=60)
    with accounts.stake(who) as stake:
        await let_in(stake, 150, 30)
        stake.observe(Progress(1, 0, 150, 150))
    with accounts.stake(who) as stake:
        assert (await refused(stake, 1, 0)).retry_after_s == pytest.approx(91)
        clock.now += 92
        await let_in(stake, 1, 0)


async def test_a_turn_that_was_given_up_is_the_next_ones() -> None:
    accounts, who = Accounts(60, Clock()), principal(running_max=1, queued_max=2)
    let_go, served = asyncio.Event(), []

    async def one(number: int) -> None:
        with accounts.stake(who) as stake:
            await let_in(stake)
            served.append(number)
            await let_go.wait()

    tasks = [asyncio.ensure_future(one(number)) for number in range(3)]
    await asyncio.sleep(0.01)
    assert (served, accounts.waiting) == ([0], 2)
    tasks[1].cancel()
    await asyncio.sleep(0.01)
    assert (served, accounts.waiting) == ([0], 1)
    let_go.set()
    await tasks[0]
    await tasks[2]
    assert (served, accounts.waiting) == ([0, 2], 0)
    with accounts.stake(who) as stake:
        await let_in(stake)


async def test_who_waits_too_long_is_refused() -> None:
    accounts, who = Accounts(0.05), principal(running_max=1, queued_max=1)
    with accounts.stake(who) as first, accounts.stake(who) as second:
        await let_in(first)
        await refused(second)
    with accounts.stake(who) as stake:
        await let_in(stake)


async def test_who_waits_hears_of_the_drain() -> None:
    accounts, who = Accounts(60), principal(running_max=1, queued_max=1)
    with accounts.stake(who) as first, accounts.stake(who) as second:
        await let_in(first)
        waits = asyncio.ensure_future(let_in(second))
        await asyncio.sleep(0)
        accounts.close(draining)
        with pytest.raises(Refused) as caught:
            await waits
        assert caught.value.reason is Reason.DRAINING


async def test_names_do_not_pile_up() -> None:
    clock = Clock()
    accounts = Accounts(60, clock)
    for number in range(5000):
        quotas = PrincipalSettings(quotas=Quotas(tokens_per_minute_max=60))
        who = Directory({"default": quotas}).named(f"n{number}")
        with accounts.stake(who) as stake:
            await let_in(stake, 1, 0)
            stake.observe(Progress(1, 0, 1, 1))
        clock.now += 1
    assert len(accounts._holdings) <= 1024


# Over sockets.


@asynccontextmanager
async def two(
    folder: Path,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    **quotas: int,
) -> AsyncIterator[tuple[Running, Shown, Shown]]:
    """A gated daemon; alice has quotas, bob has none."""
    tokens, file = Tokens(folder), folder / "c.toml"
    lines = "".join(f"{name} = {value}\n" for name, value in quotas.items())
    file.write_text(f"[principals.alice]\n{lines}")
    alice, bob = shown(tokens.new("alice")), shown(tokens.new("bob"))
    settings = {"tokens": str(tokens.path), "config": str(file)}
    async with running(FakeDevice(gated=True), limits, settings=settings) as run:
        yield run, alice, bob


def asked(run: Running, who: Shown, first: int, **fields: Any) -> Any:
    return run.generation.Generate(prompt_of(first, 6, 7, **fields), metadata=who)


async def quota_error(call: Any) -> float:
    """Seconds until another try."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(call)
    assert reason_of(caught.value) == ("RESOURCE_EXHAUSTED", "CLIENT_QUOTA")
    retry = details_of(caught.value, error_details_pb2.RetryInfo)
    assert retry is not None
    return float(retry.retry_delay.ToTimedelta().total_seconds())


async def test_running_max_refuses_the_next_and_nobody_else(folder: Path) -> None:
    async with two(folder, running_max=2) as (run, alice, bob):
        mine = [asked(run, alice, n, max_tokens=3) for n in (11, 12)]
        await until(lambda: open_rpcs(run) == 2)
        assert await quota_error(asked(run, alice, 13)) > 0
        theirs = asked(run, bob, 14, max_tokens=3)
        await until(lambda: open_rpcs(run) == 3)
        run.device.ungate()
        for call in (*mine, theirs):
            assert len((await collect(call))[0]) == 3
        assert len((await collect(asked(run, alice, 13, max_tokens=3)))[0]) == 3
        assert values(await scrape(run))["sapwood_requests_rejected_total{CLIENT_QUOTA}"] == 1


async def test_queued_max_more_wait_and_say_how_long(folder: Path) -> None:
    async with two(folder, running_max=1, queued_max=1) as (run, alice, _):
        first = asked(run, alice, 11, max_tokens=3)
        await until(lambda: open_rpcs(run) == 1)
        second = asked(run, alice, 12, max_tokens=3)
        await until(lambda: run.daemon._gate.accounts.waiting == 1)
        assert values(await scrape(run))["sapwood_requests_waiting"] == 1
        await quota_error(asked(run, alice, 13))
        await asyncio.sleep(0.1)
        run.device.ungate()
        assert len((await collect(first))[0]) == 3
        ids, _, events = await collect(second)
        assert len(ids) == 3
        assert events[-1].finish.usage.queue_seconds >= 0.1


async def test_queued_max_alone_bounds_what_waits_for_a_slot(folder: Path) -> None:
    async with two(folder, ONE_SLOT, queued_max=1) as (run, alice, bob):
        first = asked(run, alice, 11, max_tokens=9)
        await until(lambda: open_rpcs(run) == 1)
        run.device.step()
        await until(lambda: stats(run).generated_tokens >= 1)
        second = asked(run, alice, 12, max_tokens=2)
        await until(lambda: open_rpcs(run) == 2)
        await quota_error(asked(run, alice, 13))
        third = asked(run, bob, 14, max_tokens=2)
        await until(lambda: open_rpcs(run) == 3)
        run.device.ungate()
        assert [len((await collect(call))[0]) for call in (first, second, third)] == [9, 2, 2]


async def test_tokens_a_minute_over_the_wire(folder: Path) -> None:
    async with two(folder, tokens_per_minute_max=20) as (run, alice, bob):
        run.device.ungate()
        assert len((await collect(asked(run, alice, 11, max_tokens=17)))[0]) == 17
        assert 0 < await quota_error(asked(run, alice, 12, max_tokens=1)) <= 12
        assert len((await collect(asked(run, bob, 12, max_tokens=30)))[0]) == 30


async def test_bad_requests_and_cancels_give_their_place_back(folder: Path) -> None:
    async with two(folder, running_max=1) as (run, alice, _):
        for _ in range(3):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await collect(run.generation.Generate(pb.GenerateRequest(text=""), metadata=alice))
            assert reason_of(caught.value)[1] == "EMPTY_PROMPT"
        call = asked(run, alice, 11)
        await until(lambda: open_rpcs(run) == 1)
        call.cancel()
        await until(lambda: open_rpcs(run) == 0)
        run.device.ungate()
        assert len((await collect(asked(run, alice, 12, max_tokens=2)))[0]) == 2


async def test_a_drain_refuses_who_waits_for_their_own(folder: Path) -> None:
    async with two(folder, running_max=1, queued_max=1) as (run, alice, _):
        first = asked(run, alice, 11, max_tokens=3)
        await until(lambda: open_rpcs(run) == 1)
        second = asked(run, alice, 12)
        await until(lambda: run.daemon._gate.accounts.waiting == 1)
        run.device.step()  # a drain refuses who has not come to the scheduler, too
        await until(lambda: stats(run).requests_running == 1)
        run.daemon.drain()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collect(second)
        assert reason_of(caught.value) == ("UNAVAILABLE", "DRAINING")
        run.device.ungate()
        assert len((await collect(first))[0]) == 3

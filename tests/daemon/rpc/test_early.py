"""Deadlines that are told early, and rows that yield, over a socket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from sapwood.scheduler.limits import Limits
from sapwood.scheduler.outcomes import Outcome
from sapwood.scheduler.plan import StepPlan
from sapwood.scheduler.result import StepResult
from sapwood.v1 import generation_pb2 as pb
from tests.daemon.conftest import collect, error_of, prompt_of, reason_of, running, stats, until
from tests.daemon.fakes import FakeDevice

pytestmark = pytest.mark.anyio
TOKEN_S = 0.002


class SlowDevice(FakeDevice):
    """Each token of a step takes its time."""

    def _run(self, plan: StepPlan) -> StepResult:
        time.sleep(TOKEN_S * plan.tokens)
        return super()._run(plan)


def prompt(tokens: int, first: int) -> list[int]:
    return [first, *(5 + n % 200 for n in range(tokens - 1))]


async def stepping_until(device: FakeDevice, holds: Callable[[], bool]) -> None:
    """A step now and then: a request comes when it comes, and a step given before is gone."""
    while not holds():
        device.step()
        await asyncio.sleep(0.005)


async def test_what_cannot_begin_in_time_is_refused_at_once_without_a_reason() -> None:
    """2,000 tokens take four seconds, of which there are two."""
    async with running(SlowDevice()) as run:
        for first in (10, 11, 12):
            await collect(run.generation.Generate(prompt_of(*prompt(60, first), max_tokens=3)))
        request = prompt_of(
            *prompt(2000, 13), max_tokens=1, deadline_policy=pb.DEADLINE_POLICY_EARLY
        )
        error = await error_of(run.generation.Generate(request, timeout=2.0))
        assert reason_of(error) == ("DEADLINE_EXCEEDED", "")
        assert "before the deadline" in (error.details() or ""), "the daemon's word, not gRPC's"
        await until(lambda: stats(run).requests[Outcome.DEADLINE] == 1)
        assert stats(run).requests[Outcome.REJECTED] == 0


async def test_what_can_begin_in_time_is_served() -> None:
    async with running(SlowDevice()) as run:
        for first in (10, 11, 12):
            await collect(run.generation.Generate(prompt_of(*prompt(60, first), max_tokens=3)))
        request = prompt_of(
            *prompt(100, 13), max_tokens=1, deadline_policy=pb.DEADLINE_POLICY_EARLY
        )
        ids, _, _ = await collect(run.generation.Generate(request, timeout=20.0))
        assert len(ids) == 1


async def test_a_batch_row_yields_to_what_is_more_urgent_and_goes_on_with_its_reply() -> None:
    device = FakeDevice(gated=True)
    async with running(device, Limits(slots_max=2)) as run:
        batches = [
            asyncio.ensure_future(
                collect(
                    run.generation.Generate(
                        prompt_of(first, 6, 7, max_tokens=200, priority=pb.PRIORITY_BATCH)
                    )
                )
            )
            for first in (20, 21)
        ]
        await stepping_until(device, lambda: stats(run).requests_running == 2)
        urgent = asyncio.ensure_future(
            collect(
                run.generation.Generate(
                    prompt_of(22, 6, 7, max_tokens=2, priority=pb.PRIORITY_INTERACTIVE)
                )
            )
        )
        await stepping_until(device, urgent.done)
        ids, _, _ = await urgent
        assert len(ids) == 2 and not any(task.done() for task in batches)
        assert stats(run).parks >= 1
        device.ungate()
        for task in batches:
            ids, _, _ = await asyncio.wait_for(task, 10.0)
            assert len(ids) == 200

"""Several replies to one prompt: read once, forked behind it, each a row of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sapwood.scheduler.events import Failed, Finished
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.outcomes import CancelReason, Outcome
from sapwood.scheduler.reasons import Reason
from sapwood.scheduler.sampling import Sampling
from tests.scheduler.house import House, Stream, failed, finished, prompt

LIMITS = Limits(slots_max=8, prefill_tokens_max=32)
DRAWN = Sampling(1.0, noise_key=7)


def read(house: House) -> int:
    """Prompt tokens that the device evaluated."""
    return sum(len(piece.tokens) for plan in house.plans for piece in plan.prefills)


def ended(house: House, stream: Stream) -> list[bool]:
    return [row.end is not None for row in house.rows(stream)]


@pytest.mark.parametrize("tokens", [2, 9, 70])
def test_the_prompt_is_read_once_and_each_fork_reads_its_last_token(tokens: int) -> None:
    """L9."""
    house = House(limits=LIMITS)
    stream = house.submit(prompt(tokens), 12, forks=3, sampling=DRAWN, ignore_eos=True)
    house.run()
    rows = house.rows(stream)
    assert read(house) == tokens + 3
    assert len({tuple(row.tokens) for row in rows}) == 4, "each draws by itself"
    assert [len(row.tokens) for row in rows] == [12] * 4
    assert [finished(row).usage.prompt_tokens for row in rows] == [tokens, 0, 0, 0]
    assert finished(stream).usage.completion_tokens == 12
    stats = house.core.stats()
    assert (stats.requests[Outcome.LENGTH], stats.prompt_tokens) == (1, tokens)
    house.close()


def test_forks_have_the_replies_that_requests_of_their_own_would_have() -> None:
    house = House(limits=LIMITS)
    stream = house.submit(prompt(30), 20, forks=3, sampling=DRAWN)
    alone = [
        house.submit(prompt(30), 20, sampling=replace(DRAWN, noise_key=key))
        for key in (7, 1000, 1001, 1002)
    ]
    house.run()
    assert [row.tokens for row in house.rows(stream)] == [other.tokens for other in alone]
    house.close()


def test_forks_wait_for_a_long_prompt_without_slots() -> None:
    house = House(limits=LIMITS)
    stream = house.submit(prompt(100), 6, forks=3, sampling=DRAWN)
    for _ in range(3):
        house.step()
        assert len(house.core._roster.live) == 1 and house.core.stats().requests_waiting == 3
    other = house.submit(prompt(5, 9), 2)
    house.run()
    assert all(ended(house, stream)) and isinstance(other.end, Finished)
    house.close()


def test_a_slow_fork_does_not_hold_the_others_end() -> None:
    house = House(limits=replace(LIMITS, slots_max=2))
    stream = house.submit(prompt(20), 30, forks=3, sampling=DRAWN, ignore_eos=True)
    seen = []
    while house.core.has_work:
        house.step()
        seen.append(sum(ended(house, stream)))
    assert any(0 < ends < 4 for ends in seen) and seen[-1] == 4
    house.close()


def test_all_rows_are_let_in_or_none() -> None:
    house = House(limits=replace(LIMITS, slots_max=1, queued_max=3))
    first = house.submit(prompt(20), 40)
    house.step()
    stream = house.submit(prompt(20, 3), 4, forks=3, sampling=DRAWN)
    house.deliver()
    assert [failed(row).reason for row in house.rows(stream)] == [Reason.QUEUE_FULL] * 4
    fits = house.submit(prompt(20, 3), 4, forks=2, sampling=DRAWN)
    house.run()
    assert all(isinstance(row.end, Finished) for row in [first, *house.rows(fits)])
    assert house.core.stats().requests[Outcome.REJECTED] == 1
    house.close()


def test_forks_of_who_runs_neither_expire_nor_are_drained() -> None:
    house = House(limits=replace(LIMITS, queue_s_max=0.02))
    stream = house.submit(prompt(200), 6, forks=2, sampling=DRAWN)
    house.step()
    house.now += 5.0
    house.core._drain(house.now)
    house.run()
    assert all(isinstance(row.end, Finished) for row in house.rows(stream))


def test_forks_of_who_waits_are_refused_with_it() -> None:
    house = House(limits=replace(LIMITS, slots_max=1))
    house.submit(prompt(20), 30)
    house.step()
    stream = house.submit(prompt(20, 2), 6, forks=2, sampling=DRAWN)
    house.core._drain(house.now)
    house.deliver()
    assert [failed(row).reason for row in house.rows(stream)] == [Reason.DRAINING] * 3


@pytest.mark.parametrize("steps", [0, 2, 12])
@pytest.mark.parametrize("which", [0, 1])
def test_one_that_is_given_up_leaves_the_others(steps: int, which: int) -> None:
    """In the queue, while the prompt is read, and in decode; the leader, and a fork."""
    house = House(limits=LIMITS)
    stream = house.submit(prompt(100), 40, forks=2, sampling=DRAWN, ignore_eos=True)
    for _ in range(steps):
        house.step()
    rows = house.rows(stream)
    house.cancel(rows[which], CancelReason.CANCELLED)
    house.run()
    assert isinstance(rows[which].end, Failed)
    assert all(isinstance(row.end, Finished) for row in rows if row is not rows[which])
    house.close()


def test_without_a_tree_each_reads_the_prompt() -> None:
    house = House(limits=LIMITS)
    stream = house.submit(prompt(40), 6, forks=2, sampling=DRAWN, cache_bypass=True)
    house.run()
    assert all(ended(house, stream)) and read(house) == 3 * 40
    assert house.tree.nodes == 0
    house.close()


@pytest.mark.parametrize("budget", [1700, 2300, 3000, 5000])
def test_parks_and_little_memory_change_no_reply(budget: int) -> None:
    """The house compares each with its reference, and every byte at the end."""
    house = House(limits=replace(LIMITS, reply_tokens_guess=1), budget_bytes=1000 + budget)
    streams = [
        house.submit(prompt(30, n), 50, forks=3, sampling=DRAWN, prompt_logprobs=n % 2)
        for n in range(3)
    ]
    house.run()
    assert all(isinstance(row.end, Finished) for stream in streams for row in house.rows(stream))
    house.close()


def test_a_lost_step_while_the_prompt_is_read_and_behind_it() -> None:
    house = House(limits=LIMITS)
    stream = house.submit(prompt(70), 20, forks=3, sampling=DRAWN, ignore_eos=True)
    for number in range(12):
        if number in (1, 7):
            plan = house.core.plan(house.now)
            assert plan is not None
            house.device.slots.clear()
            house.device.steps += 1
            house._lose(plan)
        house.step()
    house.run()
    assert all(isinstance(row.end, Finished) for row in house.rows(stream))
    house.close()

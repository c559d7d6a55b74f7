"""C6: a step writes its K/V in place, also while reads of the pools are still under way.

- MLX writes into a buffer only where nobody holds it, unfinished reads included; else it copies the
  whole pool, which no ledger knows of. The drafter reads two layers' pools in the same step that
  writes them, so this is a matter of order.
- A slow read is one behind a sort that takes longer than a step. A CPU's queue is so short that the
  host stands before it until such a read is over: no copy shows, in whatever order the host hands
  over. So the order is held by a stand-in for a device that may be any distance behind: it reads
  until somebody waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from sapwood.model.drafting import Drafts
from sapwood.model.hand_over import HandOver
from sapwood.model.runner import Runner, Ticket
from sapwood.scheduler.plan import Admit, Capture, DecodeRow, PrefillSlice, StepPlan
from sapwood.scheduler.sampling import Sampling
from tests.cache.arrays.test_memory import peak_bytes
from tests.system.tiny import random_pair

ROOM = 1 << 18  # tokens: pools so large that nothing else of a step comes near
PROMPT = tuple(range(2, 42))
SORTED = 1 << 21


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    """Two sequences with room for much more than they have."""
    made = Runner(random_pair("e2b-tiny", tmp_path, 1024), 4, 7)
    step(made, admits=tuple(Admit(slot, 0, (), Sampling(), ROOM) for slot in range(2)))
    for slot in range(2):
        made.caches.reserve(slot, ROOM)
    step(made, prefills=tuple(PrefillSlice(slot, 0, PROMPT, True, True) for slot in range(2)))
    step(made, decodes=rows(made, 3))  # warm
    assert pool_bytes(made) > 4 * 4 * SORTED
    return made


def step(runner: Runner, **plan: Any) -> None:
    runner.wait(runner.submit(StepPlan(1, **plan)))


def rows(runner: Runner, depth: int) -> tuple[DecodeRow, ...]:
    return tuple(DecodeRow(slot, runner.caches.offset(slot), 7, depth, 1) for slot in range(2))


def pool_bytes(runner: Runner) -> int:
    """Of the keys, or the values, of one full layer."""
    return min(int(a.nbytes) for a in runner.caches.full[0].pools.arrays)


def slow_zero() -> mx.array:
    """0, after a while."""
    return mx.sort(mx.full((SORTED,), 1.0))[0] * 0


def reads(runner: Runner) -> list[mx.array]:
    """A few entries of every layer, one after another behind something slow."""
    zero = slow_zero()
    return [a[:1, :, :8].sum() + zero for a in behind(runner.caches.arrays, zero)]


def behind(arrays: Sequence[mx.array], first: mx.array) -> list[mx.array]:
    """The same arrays, read no sooner than `first` is there."""
    return [mx.depends([a], [first])[0] for a in arrays]


PLANS: dict[str, Callable[[Runner], StepPlan]] = {
    "plain": lambda runner: StepPlan(2, decodes=rows(runner, 0)),
    "drafts": lambda runner: StepPlan(2, decodes=rows(runner, 3)),
    "capture": lambda runner: StepPlan(
        2, captures=(Capture(0, 0, len(PROMPT)),), decodes=rows(runner, 3)
    ),
    "prompt": lambda runner: StepPlan(
        2,
        decodes=rows(runner, 3)[:1],
        prefills=(PrefillSlice(1, runner.caches.offset(1), PROMPT, True, True),),
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_c6_no_pool_is_copied_behind_a_slow_read(runner: Runner, name: str) -> None:
    def work() -> None:
        mx.async_eval(reads(runner))
        runner.wait(runner.submit(PLANS[name](runner)))

    assert peak_bytes(work) < pool_bytes(runner)


def test_c6_no_pool_is_copied_while_the_drafter_reads_slowly(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU so it would be without the wait for drafts: its queue is short."""
    assert runner.drafter is not None
    right, frontiers = runner.drafter.run, []

    def slowly(decodes: Any, frontier: mx.array, *rest: Any) -> Drafts:
        frontiers.append(frontier + slow_zero())
        return right(decodes, frontiers[-1], *rest)

    monkeypatch.setattr(runner.drafter, "run", slowly)
    plan = PLANS["drafts"](runner)
    assert peak_bytes(lambda: step(runner, decodes=plan.decodes)) < pool_bytes(runner)
    assert frontiers


@pytest.mark.parametrize("layers_per_part", [0, 1])
def test_c6_drafts_are_waited_for_before_what_they_were_drawn_from_is_written(
    layers_per_part: int, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The drafter's reads hold its pools until the drafts are there, and not a moment longer."""
    assert runner.drafter is not None
    runner._hand_over.layers_per_part = layers_per_part
    donors = runner.drafter.donors.values()
    drafts_of, wait_for = runner.drafter.run, HandOver.wait_for
    reading: list[mx.array] = []

    def begun(*rest: Any) -> Drafts:
        drafts = drafts_of(*rest)
        reading.extend(a[:1] for donor in donors for a in donor.pools.arrays)
        mx.eval(reading)
        return drafts

    def over(hand_over: HandOver, *arrays: mx.array) -> None:
        reading.clear()
        wait_for(hand_over, *arrays)

    monkeypatch.setattr(runner.drafter, "run", begun)
    monkeypatch.setattr(HandOver, "wait_for", over)
    plan = PLANS["drafts"](runner)
    assert peak_bytes(lambda: step(runner, decodes=plan.decodes)) < pool_bytes(runner)
    assert not reading


@pytest.mark.parametrize("name", PLANS)
def test_c6_a_pool_that_is_held_would_be_noticed(runner: Runner, name: str) -> None:
    plan = PLANS[name](runner)
    held = [a[:1] for a in runner.caches.full[0].pools.arrays]
    mx.eval(held)

    def work() -> None:
        ticket: Ticket = runner.submit(plan)
        runner.wait(ticket)

    assert peak_bytes(work) >= pool_bytes(runner)
    assert held


def test_c6_a_write_right_behind_a_slow_read_would_be_noticed(runner: Runner) -> None:
    """What the order in a step spares: nothing lies between this read and this write."""
    store = runner.caches.full[0]
    at = mx.array([0])
    fresh = mx.ones((1, store.pools.kv_heads, store.pools.head_dim))

    def work() -> None:
        (keys, _) = store.pools.arrays[:2]
        read = mx.depends([keys], [slow_zero()])[0][:1, :, :8].sum()
        mx.async_eval(read)
        keys[at, :, at] = fresh
        mx.eval(keys)

    assert peak_bytes(work) >= pool_bytes(runner)

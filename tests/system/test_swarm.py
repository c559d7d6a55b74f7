"""Random traffic on the whole stack: each reply is what its request gives alone, whatever happens.

A seed draws limits, budget, requests and who is cut off when; the test's id holds it.
"""

from __future__ import annotations

import pytest

from sapwood.scheduler.limits import Limits
from sapwood.scheduler.outcomes import CancelReason
from tests.cache.arrays.poison import poison
from tests.quick import few_quick
from tests.system.pairs import ALL, oracle, pair
from tests.system.stack import GIB, Stack, budget_bytes
from tests.system.traffic import Traffic


def build(traffic: Traffic, name: str) -> Stack:
    random = traffic.random
    limits = Limits(
        slots_max=random.choice((3, 6, 12)),
        queued_max=random.choice((4, 100)),
        queue_s_max=random.choice((0.5, 60.0)),
        prefill_tokens_max=random.choice((9, 32, 80)),
        prefill_slices_max=random.choice((1, 2, 4)),
        share_tokens_min=random.choice((4, 32)),
        tree_nodes_max=random.choice((8, 1000)),
        referred_reads_min=random.choice((1, 40, 2048)),
        referred_edge_tokens_min=random.choice((1, 512)),
    )
    loaded = pair(name, drafter=random.random() < 0.9)
    stored = random.choice((20, 120))
    tight = budget_bytes(loaded, limits, slots=3, tokens_max=114, snapshot_tokens=stored)
    spoils = random.random() < 0.3

    def before_step(stack: Stack) -> None:
        if spoils and random.random() < 0.2:
            poison(stack.runner.caches)

    return Stack(loaded, limits, random.choice((tight, 4 * GIB)), before_step)


def swarm(name: str, seed: int, steps: int) -> Stack:
    """Every step is checked by the stack; the end by close()."""
    traffic = Traffic(name, seed)
    random, stack = traffic.random, build(traffic, name)
    rate = random.choice((0.4, 0.7, 0.9))
    for _ in range(steps):
        while random.random() < rate / 2:
            late = stack.now + random.uniform(0.0, 0.6) if random.random() < 0.15 else None
            traffic.submit(stack, deadline=late)
        if stack.streams and random.random() < 0.08:
            victim = random.choice(stack.streams[-12:])
            stack.cancel(victim, random.choice(list(CancelReason)))
        stack.step()
    stack.run()
    return stack


@pytest.mark.parametrize("seed", few_quick(range(2), 0))
@pytest.mark.parametrize("name", ALL)
def test_any_traffic_gives_everybody_their_own_text(name: str, seed: int) -> None:
    stack = swarm(name, seed, 80)
    assert len(stack.check(oracle(name))) > 5
    stack.close()


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 140))
@pytest.mark.parametrize("name", ALL)
def test_any_traffic_for_long(name: str, seed: int) -> None:
    stack = swarm(name, seed, 400)
    assert len(stack.check(oracle(name))) > 20
    stack.close()

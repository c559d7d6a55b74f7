"""A budget too small for everything: M1 on the real device, every answer right, the rest refused.

The budget holds the weights, three slots of the smallest size, the workspace of their rows and of a
prefill, and snapshots of 200 tokens. MLX's active memory is held against it at every step, without slack.
"""

from __future__ import annotations

import gc

import mlx.core as mx
import pytest

from model.pair import facts
from scheduler.limits import Limits
from scheduler.plan import ModelFacts
from tests.system.pairs import ALL, oracle, pair
from tests.system.stack import Stack
from tests.system.traffic import Traffic

LIMITS = Limits(slots_max=4, prefill_tokens_max=40)
SNAPSHOT_TOKENS = 200
# At rest: the frontier rows and what MLX keeps for its own few small arrays.
REST_SLACK_BYTES = 64 * 1024


def live_and_workspace(model: ModelFacts, slots: int) -> int:
    rows = slots * (LIMITS.draft_depth_max + 1) + LIMITS.prefill_tokens_max
    return slots * model.live_bytes(1) + rows * model.workspace_bytes_per_token


def active_bytes() -> int:
    gc.collect()
    return mx.get_active_memory()


@pytest.mark.parametrize("name", ALL)
def test_m1_eviction_keeps_the_daemon_within_its_budget_and_every_answer_right(name: str) -> None:
    model = facts(pair(name), LIMITS.draft_depth_max)
    per_token = model.full_bytes_per_token + model.sliding_bytes_per_token
    room = live_and_workspace(model, 3) + SNAPSHOT_TOKENS * per_token
    stack, traffic = Stack(pair(name), LIMITS, model.weights_bytes + room), Traffic(name, 3)
    before = active_bytes()
    for _ in range(50):
        traffic.submit(stack)
        for _ in range(traffic.random.randint(0, 5)):
            stack.step()
            assert mx.get_active_memory() - before <= room, "M1"
    while stack.core.has_work:
        stack.step()
        assert mx.get_active_memory() - before <= room, "M1"
    kept = stack.ledger.held("snapshots")
    assert 0 < kept <= room
    assert abs(active_bytes() - before - kept) <= REST_SLACK_BYTES, "M1: the ledger and the device"
    assert sum(stack.tree.evictions.values()) > 20, "it was not too small for everything"
    assert len(stack.check(oracle(name))) > 30
    assert all(stream.finished for stream in stack.streams)
    stack.close()
    assert abs(active_bytes() - before) <= REST_SLACK_BYTES, "M3"


@pytest.mark.parametrize("name", ALL)
def test_l5_what_does_not_fit_alone_is_out_of_memory_and_what_just_fits_is_served(
    name: str,
) -> None:
    model = facts(pair(name), LIMITS.draft_depth_max)
    stack = Stack(pair(name), LIMITS, model.weights_bytes + live_and_workspace(model, 1))
    capacity = model.full_tokens_granularity
    refused = stack.submit([5] * 100, capacity - 99)
    served = [stack.submit([6 + i] * 100, 20) for i in range(3)]
    stack.run()
    assert getattr(refused.end, "reason", "") == "OUT_OF_MEMORY"
    assert all(stream.finished.reason == "length" for stream in served)
    stack.check(oracle(name))
    stack.close()

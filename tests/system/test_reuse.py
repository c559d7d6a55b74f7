"""M1 with MLX's buffer cache on: a kept buffer may be larger than what it is handed out for.

The whole stack on the CPU, in a budget that makes the tree evict; what the device holds is measured
after every step and at rest.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import mlx.core as mx
import pytest

from sapwood.model import device
from sapwood.scheduler.limits import Limits
from tests.model.reference import NAMES
from tests.system.device_bytes import (
    MLX_SCALARS_BYTES,
    active_bytes,
    serve_within_the_ledger,
    slack_of,
)
from tests.system.pairs import oracle, pair
from tests.system.stack import Stack, budget_bytes
from tests.system.traffic import Traffic

LIMITS = Limits(slots_max=4, prefill_tokens_max=40)
SNAPSHOT_TOKENS, REQUESTS = 2000, 36
CACHE_BYTES = 256 << 20


@pytest.fixture(autouse=True)
def kept_buffers() -> Iterator[None]:
    limit = mx.set_cache_limit(CACHE_BYTES)
    mx.clear_cache()
    yield
    mx.set_cache_limit(limit)


@pytest.mark.parametrize("asked", [1600, 12_001, 91_809, 100_000])
def test_a_kept_buffer_is_larger_by_no_more_than_is_said(asked: int) -> None:
    """Of every size above it that is kept; so the number is MLX's own, and no guess."""
    gc.collect()  # once: other tests' arrays, which only cycles hold, must not go meanwhile
    excess = []
    for more in (0, 1, 700, 1399, 4096, 8191, 8192, 20_000, 40_000):
        mx.clear_cache()
        before = mx.get_active_memory()
        kept = mx.zeros(asked + more, mx.uint8) + 0
        mx.eval(kept)
        del kept
        made = mx.zeros(asked, mx.uint8) + 0
        mx.eval(made)
        excess.append(mx.get_active_memory() - before - asked)
        del made
    assert 0 < max(excess) <= device.reuse_bytes()
    if asked > 2 * device.reuse_bytes():
        assert max(excess) == device.reuse_bytes()


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_m1_the_ledger_holds_what_mlx_hands_out_beyond_what_is_asked(name: str) -> None:
    budget = budget_bytes(pair(name), LIMITS, 3, 114, SNAPSHOT_TOKENS)
    before = active_bytes()
    stack, traffic = Stack(pair(name), LIMITS, budget), Traffic(name, 3)
    slack = slack_of(stack)
    serve_within_the_ledger(stack, traffic, REQUESTS, before)
    kept, reused = stack.ledger.held("snapshots"), active_bytes() - before - stack.tree.bytes
    print(f"{name}: {reused} of {stack.tree.bytes} bytes, {stack.tree.buffers} buffers")
    assert kept == stack.tree.bytes + stack.tree.buffers * device.reuse_bytes()
    assert stack.tree.bytes + reused <= kept + slack, "M1: the ledger and the device"
    assert reused > slack, "nothing was handed out beyond what was asked"
    stack.check(oracle(name))
    stack.close()
    assert active_bytes() - before <= MLX_SCALARS_BYTES, "M3"

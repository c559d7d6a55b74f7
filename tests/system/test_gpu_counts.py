"""The whole stack on a device that counts as Metal does: M1, T6 and every answer right.

The arrays are the CPU's; pages, buffers and what is freed late are counted by Metal's rule, with so
few buffers that the tree is bound by them.
"""

from __future__ import annotations

import pytest

from sapwood.model import device
from sapwood.model.pair import model_facts
from sapwood.scheduler.limits import Limits
from tests.model.reference import NAMES
from tests.quick import few_quick
from tests.system.pairs import oracle, pair
from tests.system.stack import Stack, budget_bytes
from tests.system.traffic import Traffic

LIMITS = Limits(slots_max=4, prefill_tokens_max=40)
PAGE_BYTES, REQUESTS, NODES = 16_384, 30, 12


def counted_as_metal_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "page_bytes", lambda: PAGE_BYTES)
    monkeypatch.setattr(device, "late_operations", lambda: 10)
    monkeypatch.setattr(device, "buffers_max", lambda: 499_000)


def with_few_buffers(name: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """What is left for the tree where every slot is taken: two for each of so many nodes."""
    facts = model_facts(pair(name), LIMITS.draft_depth_max)
    wanted = facts.weights_buffers + LIMITS.slots_max * facts.live_buffers + 2 * NODES
    monkeypatch.setattr(device, "buffers_max", lambda: 2 * wanted)
    return wanted - facts.weights_buffers


@pytest.mark.parametrize("name", few_quick(NAMES, "e2b-tiny"))
def test_m1_whole_pages_and_few_buffers_change_no_answer(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted_as_metal_does(monkeypatch)
    room = with_few_buffers(name, monkeypatch)
    budget = budget_bytes(pair(name), LIMITS, 4, 256, 4000)
    stack, traffic = Stack(pair(name), LIMITS, budget), Traffic(name, 5)
    for _ in traffic.steps(stack, REQUESTS):
        arrays = [store.arrays for store in stack.runner.caches.stores]
        assert stack.tree.buffers + sum(map(len, arrays)) <= room, "M1: buffers"
        assert stack.tree.bytes % PAGE_BYTES == 0
    assert stack.tree.evictions["evicted"] > 3, "there were buffers for all"
    assert len(stack.check(oracle(name))) > 15
    stack.close()

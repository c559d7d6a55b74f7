"""C5: whatever lies where nobody may look, nobody's text changes.

Between all steps of a running mixed load pool rows that nobody owns are NaN; in owners' rows what
is invisible has K = NaN and V = 1e30.
"""

from __future__ import annotations

import pytest

from sapwood.scheduler.limits import Limits
from tests.cache.arrays.poison import poison
from tests.system.pairs import QUICK_E2B, oracle, pair
from tests.system.stack import Stack
from tests.system.traffic import Traffic


@pytest.mark.parametrize("name", QUICK_E2B)
def test_c5_poison_changes_nobodys_text(name: str) -> None:
    poisoned = 0

    def spoil(stack: Stack) -> None:
        nonlocal poisoned
        poisoned += poison(stack.runner.caches) > 0

    limits = Limits(slots_max=8, prefill_tokens_max=40, referred_reads_min=1)
    stack = Stack(pair(name), limits, before_step=spoil)
    traffic = Traffic(name, 5)
    for _ in range(28):
        traffic.submit(stack)
        if traffic.random.random() < 0.2:
            stack.cancel(traffic.random.choice(stack.streams))
        for _ in range(traffic.random.randint(0, 4)):
            stack.step()
    stack.run()
    assert len(stack.check(oracle(name))) > 12
    assert poisoned > 20
    assert sum(stream.progress[0].cached > 0 for stream in stack.streams if stream.progress) > 3
    stack.close()

"""A budget too small for everything: M1 on the real device, every answer right, the rest refused.

The budget holds the weights, three slots of the smallest size, the workspace of their rows and of a
prefill, and snapshots of 200 tokens. MLX's active memory is held against the ledger after every
step. MLX's buffer cache is off, so that buffers are as large as asked for; test_reuse has it on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from sapwood.scheduler.limits import Limits
from sapwood.scheduler.reasons import Reason
from tests.model.reference import NAMES
from tests.quick import few_quick
from tests.system.device_bytes import (
    MLX_SCALARS_BYTES,
    active_bytes,
    exact_buffers,
    serve_within_the_ledger,
    slack_of,
)
from tests.system.pairs import oracle, pair
from tests.system.stack import Stack, budget_bytes
from tests.system.traffic import Traffic

LIMITS = Limits(slots_max=4, prefill_tokens_max=40)
BY_REFERENCE = replace(LIMITS, referred_reads_min=1, referred_edge_tokens_min=1)
SNAPSHOT_TOKENS, REQUESTS = 200, 36


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with exact_buffers(monkeypatch):
        yield


@pytest.mark.parametrize(
    "limits",
    few_quick([LIMITS, BY_REFERENCE], BY_REFERENCE),
    ids=["copied", "by reference"],
)
@pytest.mark.parametrize("name", few_quick(NAMES, "a4b-tiny"))
def test_m1_eviction_keeps_the_daemon_within_its_budget_and_every_answer_right(
    name: str, limits: Limits
) -> None:
    budget = budget_bytes(pair(name), limits, 3, 114, SNAPSHOT_TOKENS)
    before, bases = active_bytes(), Counter[str]()

    def look(stack: Stack) -> None:
        rows = stack.runner.caches.rows
        bases.update("referred" if rows.base(slot) else "own" for slot in rows.places)

    stack, traffic = Stack(pair(name), limits, budget, before_step=look), Traffic(name, 3)
    slack = slack_of(stack)
    serve_within_the_ledger(stack, traffic, REQUESTS, before)
    kept = stack.ledger.held("snapshots")
    assert kept <= active_bytes() - before <= kept + slack, "M1: the ledger and the device"
    assert sum(stack.tree.evictions.values()) > 20, "it was not too small for everything"
    assert (bases["referred"] > 20) == (limits is BY_REFERENCE), bases
    assert len(stack.check(oracle(name))) > 20
    assert all(stream.finished for stream in stack.streams)
    stack.close()
    assert active_bytes() - before <= MLX_SCALARS_BYTES, "M3"


@pytest.mark.parametrize("name", few_quick(NAMES, "a4b-tiny"))
def test_l5_what_does_not_fit_alone_is_out_of_memory_and_what_just_fits_is_served(
    name: str,
) -> None:
    """A budget for one sequence of 320 tokens, which is also where live K/V would grow."""
    stack = Stack(pair(name), LIMITS, budget_bytes(pair(name), LIMITS, 1, 320))
    refused = stack.submit([5] * 100, 221)
    served = [stack.submit([6 + i] * 300, 20) for i in range(3)]
    stack.run()
    assert getattr(refused.end, "reason", None) is Reason.OUT_OF_MEMORY
    assert all(stream.finished.reason == "length" for stream in served)
    stack.check(oracle(name))
    stack.close()

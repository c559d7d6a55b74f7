"""How often everybody waits while the tree evicts, cuts and joins for one admission.

- A wait is an `mx.eval` with something in it. Counted by what the engine's loop does: plan and its
  copies, submit, commit and its copies.
- Copies take room beside what they are made from: the room is that of the step, which is not under
  way. So the most that is held while they are made is held against the ledger.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import pytest

from sapwood.cache.arrays.ranges import EdgePayload
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.plan import StepPlan
from tests.system.pairs import oracle, pair
from tests.system.stack import Stack, budget_bytes

LIMITS = Limits(slots_max=4, prefill_tokens_max=32)
NAME = "e2b-tiny"
STORED = 14  # replies, each a path of its own
SCALARS_BYTES = 4096
WAITS_MAX = 4


class Watched(Stack):
    """Counts waits and operations of payloads in every phase of every step."""

    def __init__(self, budget: int, patch: pytest.MonkeyPatch) -> None:
        super().__init__(pair(NAME), LIMITS, budget)
        self.phase = ""
        self.waits: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()
        self.steps: list[tuple[StepPlan, Counter[str], Counter[str]]] = []
        self.excess_bytes: list[int] = []  # of copies over what is reserved and free
        self.held_bytes = mx.get_active_memory()
        evaluate = mx.eval

        def waiting(*arrays: Any) -> None:
            self.waits[self.phase] += any(a for a in arrays)
            evaluate(*arrays)

        patch.setattr(mx, "eval", waiting)
        for name in ("split", "merge", "thin"):
            patch.setattr(EdgePayload, name, self.counted(getattr(EdgePayload, name), name))
        for phase, owner, name in (
            ("plan", self.core, "plan"),
            ("submit", self.runner, "submit"),
            ("wait", self.runner, "wait"),
            ("commit", self.core, "commit"),
        ):
            patch.setattr(owner, name, self.during(phase, getattr(owner, name)))
        patch.setattr(self.runner, "make_copies", self.measured(self.runner.make_copies))

    def counted(self, operation: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(payload: EdgePayload, *rest: Any) -> Any:
            self.operations[f"{self.phase} {name}"] += 1
            return operation(payload, *rest)

        return call

    def during(self, phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def work(*rest: Any) -> Any:
            self.phase = phase
            return call(*rest)

        return work

    def measured(self, make: Callable[[int], None]) -> Callable[[int], None]:
        """Copies belong to the phase before them."""

        def work(bytes_max: int) -> None:
            if self.phase not in ("plan", "commit"):
                make(bytes_max)
                return
            mx.synchronize()
            mx.reset_peak_memory()
            make(bytes_max)
            mx.synchronize()
            room = self.ledger.budget_bytes - self.ledger.weights_bytes
            self.excess_bytes.append(mx.get_peak_memory() - self.held_bytes - room)

        return work

    def step(self) -> StepPlan | None:
        self.waits.clear()
        self.operations.clear()
        plan = super().step()
        if plan is not None:
            self.steps.append((plan, self.waits.copy(), self.operations.copy()))
        return plan


@pytest.fixture(autouse=True)
def exact_buffers() -> Iterator[None]:
    limit = mx.set_cache_limit(0)
    yield
    mx.set_cache_limit(limit)


def prompt(seed: int, tokens: int) -> list[int]:
    return [5 + (seed * 7 + i * (seed + 3)) % 40 for i in range(tokens)]


def test_m1_an_admission_that_evicts_waits_once_for_all_that_is_thinned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Room for a long sequence is a little of each of many replies that are stored."""
    stack = Watched(budget_bytes(pair(NAME), LIMITS, 1, 320, STORED * 62), monkeypatch)
    seeds = itertools.count()
    while not sum(stack.tree.evictions.values()):  # what a slot will take is full of replies
        stack.generate(prompt(next(seeds), 60), 2, depth=0)
    for seed in (90, 91):
        stack.submit(prompt(seed, 300), 2, depth=0)
    stack.run()
    most = 0
    for plan, waits, operations in stack.steps:
        assert waits["plan"] <= 1 and waits["commit"] <= 1
        moves = len(plan.admits) + plan.pack + bool(plan.grows)
        assert waits["submit"] <= WAITS_MAX * moves + len(plan.captures)
        most = max(most, operations["plan thin"])
    assert most >= 10, "too few to see each wait for itself"
    assert max(stack.excess_bytes) <= SCALARS_BYTES
    stack.check(oracle(NAME))
    stack.close()


def test_what_a_commit_cuts_and_joins_is_one_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three prompts leave a stored one within its edge; they and one in many slices end at once."""
    stack = Watched(budget_bytes(pair(NAME), LIMITS, 4, 64, 1000), monkeypatch)
    stack.generate(prompt(1, 60), 2, depth=0)
    long = stack.submit(prompt(2, 200), 40, depth=0)
    while not long.tokens:
        stack.step()
    leaving = [prompt(1, tokens) + prompt(tokens, 8) for tokens in (20, 28, 36)]
    streams = [long, *(stack.submit(tokens, 40, depth=0) for tokens in leaving)]
    while not all(stream.tokens for stream in streams):
        stack.step()
    for stream in streams:
        stack.cancel(stream)
    stack.run()
    most: Counter[str] = Counter()
    for _, waits, operations in stack.steps:
        assert waits["commit"] <= 1
        most |= operations
    assert most["commit split"] >= 3 and most["commit merge"] >= 6, most
    stack.check(oracle(NAME))
    stack.close()

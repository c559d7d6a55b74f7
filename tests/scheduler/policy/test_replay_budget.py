"""What replays may take of the device's time."""

from __future__ import annotations

import pytest

from sapwood.scheduler.policy.replay_budget import ReplayBudget


def test_s10_nothing_is_spent_that_was_not_earned() -> None:
    """Whatever replays take, beyond the error of one expectation."""
    budget, steps_s, spent_s = ReplayBudget(0.01), 0.0, 0.0
    for step in range(3000):
        steps_s += 0.05
        budget.earn(0.05, 0.5)
        if budget.affords(0.02):
            took = 0.02 + 0.1 * (step % 3)
            spent_s += took
            budget.spend(0.02, took)
    assert 0.5 * 0.01 * steps_s < spent_s <= 0.01 * steps_s + 0.22


def test_credit_ends_at_what_one_may_take() -> None:
    budget = ReplayBudget(0.5)
    for _ in range(100):
        budget.earn(1.0, 2.0)
    assert budget.credit_s == 2.0


def test_what_is_expected_follows_what_replays_took_and_no_hitch_ends_them() -> None:
    budget = ReplayBudget(1.0)
    budget.spend(0.1, 0.2)
    assert budget.expected_s(0.1) == pytest.approx(0.2)
    budget.spend(0.1, 1000.0)
    assert budget.expected_s(0.1) == pytest.approx(0.4)
    for _ in range(30):
        budget.spend(0.1, 0.1)
    assert budget.expected_s(0.1) == pytest.approx(0.1, rel=0.01)

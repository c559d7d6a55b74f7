"""Rounds that are computed once more, in the simulator, and that it would notice."""

from __future__ import annotations

import pytest

from sapwood.scheduler.policy.replay_budget import ReplayBudget
from tests.sim.play import play
from tests.sim.story import Ask, Config, Scenario

CHECKED = Scenario(
    Config(check_share=0.3, step_s=0.1), (Ask(0, 1, (("pool", 0, 70),), 60, ignore_eos=True),)
)


def test_s10_without_a_budget_rounds_take_more_than_their_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, violation = play(CHECKED)
    assert violation is None, violation
    monkeypatch.setattr(ReplayBudget, "affords", lambda *_: True)
    _, violation = play(CHECKED)
    assert violation is not None and "S10: " in violation.message, violation

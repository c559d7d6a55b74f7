"""The engine thread's account of its newest steps: what each part of them took."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sapwood.daemon.engine import step_clock
from sapwood.daemon.engine.step_clock import STEPS_KEPT, StepClock
from sapwood.scheduler.plan import DecodeRow, PrefillSlice, StepPlan


class Timer:
    """A clock that is told what passes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(step_clock, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def turn(self, steps: StepClock, number: int, drafted_at: float) -> None:
        rows = (DecodeRow(0, 10, 5, 3, 1), DecodeRow(1, 10, 5, 1, 1))
        steps.begin()
        self.now += 1.0
        steps.over("plan")
        self.now += 2.0
        steps.over("emit")
        slices = (PrefillSlice(2, 0, (5,) * 7, draws=True, capture=True),)
        steps.planned(StepPlan(number, decodes=rows, prefills=slices))
        self.now += 10.0
        steps.ran(6.0, drafted_at)
        self.now += 4.0
        steps.over("commit")
        steps.finish()


def test_a_step_is_divided_where_its_drafts_were_there(monkeypatch: pytest.MonkeyPatch) -> None:
    timer, steps = Timer(monkeypatch), StepClock()
    timer.turn(steps, 1, drafted_at=106.0)  # the device's part begins at 103
    (step,) = steps.newest()
    assert (step.number, step.begun_at) == (1, 100.0)
    assert (step.plan_s, step.emit_s, step.commit_s) == (1.0, 2.0, 4.0)
    assert (step.draft_s, step.target_s) == (3.0, 7.0)
    assert (step.rows, step.drafted, step.read_tokens) == (2, 4, 7)
    assert [steps.phases()[phase].total for phase in ("build", "device")] == [4.0, 6.0]


def test_drafts_of_a_step_before_are_none_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    timer, steps = Timer(monkeypatch), StepClock()
    timer.turn(steps, 1, drafted_at=106.0)
    timer.turn(steps, 2, drafted_at=106.0)
    assert [(step.draft_s, step.target_s) for step in steps.newest()] == [(3.0, 7.0), (0.0, 10.0)]


def test_only_the_newest_are_kept_and_what_was_handed_out_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timer, steps = Timer(monkeypatch), StepClock()
    timer.turn(steps, 1, 0.0)
    early = steps.newest()
    for number in range(2, STEPS_KEPT + 4):
        timer.turn(steps, number, 0.0)
    assert [step.number for step in steps.newest()] == list(range(4, STEPS_KEPT + 4))
    assert [step.number for step in early] == [1]

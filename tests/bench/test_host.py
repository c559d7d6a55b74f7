"""Host time: the right steps are counted, and each second of a step goes to one part."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import stopwatch
from bench.host import ROWS, STEPS_MIN, full_steps, mean_step
from bench.measure import BenchError
from bench.stopwatch import Stopwatch, TimedStep
from sapwood.scheduler.plan import Capture, DecodeRow, PrefillSlice, StepPlan


def step(rows: int = ROWS, prefill_tokens: int = 0, moves: int = 0, **seconds: float) -> TimedStep:
    parts = ("plan_s", "build_s", "device_s", "emit_s", "commit_s")
    return TimedStep(rows, 0, prefill_tokens, moves, **{p: seconds.get(p, 1.0) for p in parts})


def test_only_full_steps_without_prefill_or_moves_count() -> None:
    full = [step()] * STEPS_MIN
    others = [step(rows=ROWS - 1), step(prefill_tokens=1), step(moves=1)]
    assert full_steps([*others, *full]) == full
    with pytest.raises(BenchError, match=f"only {STEPS_MIN - 1} steps"):
        full_steps([*others, *full[1:]])


def test_host_is_plan_commit_and_emit_and_the_step_is_all() -> None:
    found = mean_step([step(plan_s=1, build_s=2, device_s=3, emit_s=4, commit_s=5), step(plan_s=3)])
    assert found["host"] == ((1 + 4 + 5) + (3 + 1 + 1)) / 2
    assert found["step"] == (15 + 7) / 2
    assert found["steps"] == 2


def test_the_stopwatch_splits_a_step_at_the_hand_overs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every call of the loop takes its own power of two, so that no sum can hide a mix-up."""
    now = 0.0

    def takes(seconds: float, answer: object = None) -> Callable[..., Any]:
        def call(*_: object) -> object:
            nonlocal now
            now += seconds
            return answer

        return call

    plan = StepPlan(
        1,
        captures=(Capture(3, 0, 1),),
        decodes=(DecodeRow(0, 5, 7, 2, 1), DecodeRow(1, 5, 7, 1, 1)),
        prefills=(PrefillSlice(2, 0, (1, 2, 3), False, False),),
    )
    monkeypatch.setattr(stopwatch, "_clock", lambda: now)

    class Device:
        """Of what it takes 8 and 32 are the device's."""

        device_s = 1000.0

        def submit(self, _: object) -> None:
            takes(4 + 8)()
            self.device_s += 8

        def wait(self, _: object) -> None:
            takes(32 + 128)()
            self.device_s += 32

        def close(self) -> None:
            pass

    core: Any = SimpleNamespace(plan=takes(1, plan), commit=takes(64), has_work=True)
    runner: Any = Device()
    watch = Stopwatch(tmp_path / "steps.json")
    core, runner = watch.timed(core, runner)
    assert core.has_work
    assert core.plan(0.0) is plan
    takes(16)()  # emit
    ticket = runner.submit(plan)
    takes(2)()  # between submit and wait there is nothing: it would count as building
    core.commit(plan, runner.wait(ticket), 0.0)
    assert runner.device_s == 1040.0
    runner.close()
    (found,) = (TimedStep(**s) for s in json.loads((tmp_path / "steps.json").read_text()))
    assert found == TimedStep(2, 3, 3, 1, 1.0, 4.0 + 2.0 + 128.0, 8.0 + 32.0, 16.0, 64.0)

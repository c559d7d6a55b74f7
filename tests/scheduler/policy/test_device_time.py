"""What steps are learned to cost, on devices whose law is known."""

from __future__ import annotations

import pytest

from sapwood.scheduler.policy.device_time import DeviceTime, Work

MIXED = [Work(8, 8 + n % 3, 100 * (n % 2) + 30 * (n % 5), 1000 * (n % 7)) for n in range(200)]


def linear(work: Work) -> float:
    base = 0.01 + 0.0005 * work.decode_tokens + 0.0003 * work.prompt_tokens
    return base + 2e-6 * work.context_tokens


def taught(works: list[Work]) -> DeviceTime:
    time = DeviceTime()
    for work in works:
        time.observe(work, linear(work))
    return time


def test_mixed_steps_tell_what_each_part_takes() -> None:
    time = taught(MIXED)
    assert time.step(Work(8, 9, 300, 2000)) == pytest.approx(linear(Work(8, 9, 300, 2000)), rel=0.1)
    assert time.prompt_token == pytest.approx(0.0003, rel=0.15)


def test_the_parts_of_a_step_are_the_step() -> None:
    time = taught(MIXED)
    rows = [time.row(3, 4, 500), time.row(3, 2, 100)]
    whole = Work(parts=3, decode_tokens=6, prompt_tokens=70, context_tokens=600)
    assert sum(rows) + time.slice(3, 70) == pytest.approx(time.step(whole))


def test_steps_of_one_kind_are_priced_right_though_they_tell_nothing_apart() -> None:
    for work in (Work(8, 8, 0, 0), Work(2, 0, 512, 0)):
        assert taught([work] * 60).step(work) == pytest.approx(linear(work), rel=0.05)


def test_a_stall_moves_little_and_a_change_is_followed() -> None:
    time = taught(MIXED)
    before = time.step(Work(8, 8, 0, 0))
    time.observe(Work(8, 8, 0, 0), 5.0)
    assert time.step(Work(8, 8, 0, 0)) == pytest.approx(before, rel=0.1)
    for work in MIXED:
        time.observe(work, 2 * linear(work))
    assert time.step(Work(8, 8, 0, 0)) == pytest.approx(2 * before, rel=0.15)


def test_the_dearest_step_is_forgotten_slowly() -> None:
    time = taught([*MIXED, Work(1, 0, 2000, 0)])
    dearest = time.dearest
    assert dearest == pytest.approx(linear(Work(1, 0, 2000, 0)), rel=0.2)
    for _ in range(200):
        time.observe(Work(8, 8, 0, 0), linear(Work(8, 8, 0, 0)))
    assert time.step(Work(8, 8, 0, 0)) < time.dearest < 0.4 * dearest


def test_nothing_is_learned_of_nothing() -> None:
    time = DeviceTime()
    time.observe(Work(0, 0, 0, 0), 1.0)
    time.observe(Work(1, 1, 0, 0), 0.0)
    assert (time.dearest, time.row(1, 1, 0)) == (0.0, 1.03)

"""What steps are learned to cost, on devices whose law is known."""

from __future__ import annotations

import pytest

from sapwood.scheduler.policy.device_time import DeviceTime, Work
from sapwood.scheduler.policy.slice_cost import NO_READING, Reading, keys_read


def work_of(parts: int, decode_tokens: int, prompt_tokens: int, context_tokens: int) -> Work:
    reading = Reading(1, prompt_tokens, keys_read(400, prompt_tokens))
    return Work(parts, decode_tokens, context_tokens, reading if prompt_tokens else NO_READING)


MIXED = [work_of(8, 8 + n % 3, 100 * (n % 2) + 30 * (n % 5), 1000 * (n % 7)) for n in range(200)]


def linear(work: Work) -> float:
    base = (
        0.01 + 0.0005 * work.decode_tokens + 0.0003 * work.reading.tokens + 3e-8 * work.reading.keys
    )
    return base + 2e-6 * work.context_tokens


def taught(works: list[Work]) -> DeviceTime:
    time = DeviceTime()
    for work in works:
        time.observe(work, linear(work))
    return time


def test_mixed_steps_tell_what_each_part_takes() -> None:
    time = taught(MIXED)
    assert time.step(work_of(8, 9, 300, 2000)) == pytest.approx(
        linear(work_of(8, 9, 300, 2000)), rel=0.1
    )
    read = time.slice(2, 400, 100) - time.slice(2, 400, 50)
    assert read == pytest.approx(50 * 0.0003 + 3e-8 * (50 * 400 + 3750), rel=0.15)


def test_the_parts_of_a_step_are_the_step() -> None:
    time = taught(MIXED)
    rows = [time.row(3, 4, 500), time.row(3, 2, 100)]
    whole = work_of(parts=3, decode_tokens=6, prompt_tokens=70, context_tokens=600)
    assert sum(rows) + time.slice(3, 400, 70) == pytest.approx(time.step(whole))


def test_steps_of_one_kind_are_priced_right_though_they_tell_nothing_apart() -> None:
    for work in (work_of(8, 8, 0, 0), work_of(2, 0, 512, 0)):
        assert taught([work] * 60).step(work) == pytest.approx(linear(work), rel=0.05)


def test_a_stall_moves_little_and_a_change_is_followed() -> None:
    time = taught(MIXED)
    before = time.step(work_of(8, 8, 0, 0))
    time.observe(work_of(8, 8, 0, 0), 5.0)
    assert time.step(work_of(8, 8, 0, 0)) == pytest.approx(before, rel=0.1)
    for work in MIXED:
        time.observe(work, 2 * linear(work))
    assert time.step(work_of(8, 8, 0, 0)) == pytest.approx(2 * before, rel=0.15)


def test_the_dearest_step_is_forgotten_slowly() -> None:
    time = taught([*MIXED, work_of(1, 0, 2000, 0)])
    dearest = time.dearest
    assert dearest == pytest.approx(linear(work_of(1, 0, 2000, 0)), rel=0.2)
    for _ in range(200):
        time.observe(work_of(8, 8, 0, 0), linear(work_of(8, 8, 0, 0)))
    assert time.step(work_of(8, 8, 0, 0)) < time.dearest < 0.4 * dearest


def test_nothing_is_learned_of_nothing() -> None:
    time = DeviceTime()
    time.observe(work_of(0, 0, 0, 0), 1.0)
    time.observe(work_of(1, 1, 0, 0), 0.0)
    assert (time.dearest, time.row(1, 1, 0)) == (0.0, 1.03)

"""The learned cost of a step: recovered where it can be, steady where a sample lies."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapwood.scheduler.policy.slice_cost import Reading
from sapwood.scheduler.policy.step_cost import (
    COUNT_SETTLED,
    LOOK_APART,
    LOOK_STEPS,
    LOOK_YOUNG_STEPS,
    StepCost,
    StepShape,
)
from tests.scheduler.policy.world import predicted

READ = Reading(1, 512, 512 * 256)


def true_seconds(shape: StepShape) -> float:
    return (
        0.010
        + 0.0004 * shape.rows
        + 0.0006 * shape.drafted
        + 0.0011 * shape.iterations
        + 1e-7 * shape.context_tokens
    )


def taught() -> StepCost:
    cost = StepCost()
    for step in range(120):
        rows, depth = 1 + step % 8, (step * 7) % 5
        shape = StepShape(rows, rows * depth, depth, rows * (300 + 10 * step))
        cost.observe(shape, true_seconds(shape))
    return cost


@pytest.mark.parametrize("rows", [4, 6, 8])
@pytest.mark.parametrize("depth", [0, 2, 4])
def test_a_linear_cost_is_recovered(rows: int, depth: int) -> None:
    shape = StepShape(rows, rows * depth, depth, rows * 900)
    assert predicted(taught(), shape) == pytest.approx(true_seconds(shape), rel=0.05)


@pytest.mark.parametrize("rise", [0.0, 0.5])
def test_what_lies_between_the_ends_of_two_tiles_is_no_cheaper_by_a_straight_line(
    rise: float,
) -> None:
    """Of a stair at 17 tokens half is seen at once, though 28 and 32 alone were measured."""
    cost = StepCost()
    for _ in range(20):
        for rows in (1, 4, 8, 16, 28, 32):
            cost.observe(StepShape(rows, 0, 0, 0), 1.0 + 0.01 * rows + rise * (rows > 16))
    prices = cost.prices(17, 0)
    believed = prices.seconds(0, 0) - (1.0 + 0.17)
    assert 0.5 * rise - 0.04 <= believed <= rise + 0.04


@given(st.lists(st.tuples(st.integers(1, 32), st.integers(0, 8), st.floats(1e-6, 1e4))))
def test_no_price_is_negative(samples: list[tuple[int, int, float]]) -> None:
    """Whatever the samples say: a choice among depths needs prices that are no gifts."""
    cost = StepCost()
    for rows, depth, seconds in samples:
        cost.observe(StepShape(rows, rows * depth, depth, rows * 100), seconds)
    assert min(cost.prices(2, 200).slopes) >= 0.0
    assert all(predicted(cost, StepShape(2, 2 * n, n, 200)) > 0.0 for n in range(9))


@pytest.mark.parametrize("stall", [0.001, 1000.0])
def test_one_sample_moves_the_prediction_by_a_few_percent(stall: float) -> None:
    cost, shape = taught(), StepShape(4, 8, 2, 4000)
    for _ in range(30):
        cost.observe(shape, true_seconds(shape))
    before = predicted(cost, shape)
    cost.observe(shape, stall * true_seconds(shape))
    assert predicted(cost, shape) == pytest.approx(before, rel=0.05)


@pytest.mark.parametrize("factor", [0.05, 20.0])
def test_a_lasting_change_is_followed_in_a_dozen_steps(factor: float) -> None:
    cost, shape = taught(), StepShape(4, 8, 2, 4000)
    for _ in range(12):
        cost.observe(shape, factor * true_seconds(shape))
    assert 0.5 * factor <= predicted(cost, shape) / true_seconds(shape) <= 2.0 * factor


def test_a_depth_not_tried_for_long_is_not_forgotten() -> None:
    """Plain decoding is still priced rightly after a thousand steps of drafting."""
    cost = StepCost()
    plain, drafting = StepShape(1, 0, 0, 500), StepShape(1, 4, 4, 500)
    for _ in range(10):
        cost.observe(plain, 1.0)
        cost.observe(drafting, 3.0)
    for _ in range(1000):
        cost.observe(drafting, 3.0)
    assert predicted(cost, plain) == pytest.approx(1.0, rel=0.05)


def test_prefill_has_its_own_price_and_touches_no_other() -> None:
    cost, shape = taught(), StepShape(4, 8, 2, 4000)
    before = predicted(cost, shape)
    for tokens in (512, 100, 300) * 5:
        mixed = StepShape(4, 8, 2, 4000, Reading(1, tokens))
        cost.observe(mixed, true_seconds(shape) + 0.0002 * tokens)
    assert predicted(cost, shape) == before
    mixed = StepShape(4, 8, 2, 4000, Reading(1, 400))
    assert predicted(cost, mixed) - before == pytest.approx(0.08, rel=0.1)


def test_a_clock_that_stood_still_teaches_nothing() -> None:
    cost, shape = taught(), StepShape(4, 8, 2, 4000)
    before = predicted(cost, shape)
    cost.observe(shape, 0.0)
    assert predicted(cost, shape) == before


@pytest.mark.parametrize("unit_s", [1e-4, 1.0, 1e4])
def test_what_a_prediction_compares_does_not_depend_on_the_clocks_unit(unit_s: float) -> None:
    """Before the first decode step too, when prefill has been measured and decode has not."""
    cost, plain = StepCost(), StepShape(2, 0, 0, 200)
    mixed, drafted = StepShape(2, 0, 0, 200, READ), StepShape(2, 8, 4, 200, READ)
    for _ in range(5):
        cost.observe(StepShape(0, 0, 0, 0, READ), 0.5 * unit_s)
    assert predicted(cost, drafted) / predicted(cost, mixed) == pytest.approx(1.04, abs=0.02)
    cost.observe(plain, 0.1 * unit_s)
    assert predicted(cost, plain) == pytest.approx(0.1 * unit_s, rel=0.01)
    assert predicted(cost, mixed) == pytest.approx((0.1 + 0.5) * unit_s, rel=0.2)


def test_a_slow_spell_that_ends_among_new_kinds_does_not_make_them_cheap() -> None:
    """They settled beside a level that was over, and confirmed it (a simulator's seed)."""
    cost = taught()
    known = StepShape(4, 8, 2, 4000)
    for _ in range(12):
        cost.observe(known, 4.0 * true_seconds(known))
    assert cost.level == pytest.approx(4.0, rel=0.1)
    cost.observe(known, true_seconds(known))
    new = [StepShape(3, 3 * depth, depth, 3000) for depth in (6, 7, 8)]
    for step in range(30):
        cost.observe(new[step % 3], true_seconds(new[step % 3]))
    assert cost.level == pytest.approx(1.0, rel=0.1)
    for shape in new:
        assert predicted(cost, shape) == pytest.approx(true_seconds(shape), rel=0.1)


def test_nor_does_it_make_slices_cheap() -> None:
    cost, plain = taught(), StepShape(4, 8, 2, 4000)
    mixed = StepShape(4, 8, 2, 4000, reading=READ)
    slice_s = 0.050
    for _ in range(20):
        cost.observe(mixed, true_seconds(plain) + slice_s)
    before = cost.slices.of(READ)
    for _ in range(12):
        cost.observe(plain, 4.0 * true_seconds(plain))
    for _ in range(8):
        cost.observe(mixed, true_seconds(plain) + slice_s)
    assert cost.slices.of(READ) == pytest.approx(before, rel=0.1)


@pytest.mark.parametrize(("share", "denied"), [(0.5, True), (1.5, False)])
def test_a_step_with_slices_that_takes_less_than_its_rows_denies_what_these_take(
    share: float, denied: bool
) -> None:
    cost = taught()
    new = StepShape(4, 40, 10, 2000, READ)
    cost.observe(new, share * cost.decode_s(new))
    assert cost.rows_overpriced is denied


@pytest.mark.parametrize(("share", "wanted"), [(0.5, True), (1.5, False)])
def test_a_settled_kind_that_slices_deny_is_looked_at_before_long(
    share: float, wanted: bool
) -> None:
    cost, plain = taught(), StepShape(4, 8, 2, 4000)
    for _ in range(8):
        cost.observe(plain, true_seconds(plain))
    mixed = StepShape(4, 8, 2, 4000, READ)
    for _ in range(LOOK_APART):
        cost.observe(mixed, share * cost.decode_s(mixed))
    assert cost.wants_look(mixed) is wanted


@pytest.mark.parametrize("seen", [0, 1, COUNT_SETTLED])
def test_what_was_seen_once_is_not_looked_at_again_at_once(seen: int) -> None:
    """A crowd has many kinds of step: four looks at each would be every fourth step."""
    cost = taught()
    plain, mixed = StepShape(4, 40, 10, 4000), StepShape(4, 40, 10, 4000, READ)
    for _ in range(seen):
        cost.observe(plain, true_seconds(plain))
    after = 0
    while not cost.wants_look(mixed):
        cost.observe(mixed, 1.5 * true_seconds(plain))
        after += 1
    assert after == {0: LOOK_APART, 1: LOOK_YOUNG_STEPS, COUNT_SETTLED: LOOK_STEPS}[seen]


def test_beyond_what_was_seen_a_step_is_as_steep_as_with_the_last_stair() -> None:
    """Of a device whose tiles of 16 tokens cost alike, seen up to 32 tokens."""
    cost = StepCost()
    for _ in range(20):
        for rows in (1, 8, 16, 20, 28, 32):
            cost.observe(StepShape(rows, 0, 0, 0), 1.0 + 0.5 * ((rows - 1) // 16))
    assert cost.prices(64, 0).seconds(0, 0) == pytest.approx(2.5, rel=0.12)


def test_a_step_that_copies_teaches_a_kind_that_no_other_does_without_its_copies() -> None:
    cost, known = taught(), StepShape(4, 8, 2, 4000)
    copies_s = 0.030
    for n in range(60):
        mixed = replace(known, reading=READ, copied=bool(n % 2))
        cost.observe(mixed, true_seconds(known) + 0.050 + copies_s * (n % 2))
    new = StepShape(4, 40, 10, 4000, copied=True)
    for _ in range(3):
        cost.observe(new, true_seconds(new) + copies_s)
    assert predicted(cost, replace(new, copied=False)) == pytest.approx(true_seconds(new), rel=0.15)

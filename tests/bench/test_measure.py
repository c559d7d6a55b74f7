"""Ratios are taken within a run, spreads over runs, verdicts on the median."""

from __future__ import annotations

import pytest

from bench.measure import Figure, Goal, Side, Spread, alternated, at_least, at_most


def figure(ours: tuple[float, ...], peer: tuple[float, ...], target: Goal | None = None) -> Figure:
    return Figure(
        "bench/figure", "A figure", Side("ours", "s", ours), Side("peer", "s", peer), target
    )


def test_a_spread_has_quartiles_and_range() -> None:
    assert Spread.of([4.0, 1.0, 3.0, 2.0, 5.0]) == Spread(3.0, 2.0, 4.0, 1.0, 5.0, 5)
    assert Spread.of([2.0, 1.0]) == Spread(1.5, 1.25, 1.75, 1.0, 2.0, 2)


def test_one_run_has_no_spread() -> None:
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0, 7.0, 7.0, 1)


def test_the_ratio_is_taken_within_each_run() -> None:
    """A machine that is ten times slower in one run changes nothing."""
    found = figure((1.0, 20.0, 3.0), (2.0, 40.0, 6.0))
    assert found.ratios == [0.5, 0.5, 0.5]
    skewed = figure((1.0, 8.0, 9.0), (1.0, 2.0, 10.0))
    assert skewed.spread.median == 1.0  # of the medians it would be 4


def test_sides_of_unlike_length_are_no_figure() -> None:
    with pytest.raises(ValueError, match="shorter"):
        _ = figure((1.0, 2.0), (1.0,)).ratios


@pytest.mark.parametrize(
    ("target", "ours", "met"),
    [
        (at_most(0.1), 0.1, True),
        (at_most(0.1), 0.11, False),
        (at_least(5), 5.0, True),
        (at_least(5), 4.9, False),
        (None, 1e9, None),
    ],
)
def test_a_verdict_is_the_medians(target: Goal | None, ours: float, met: bool | None) -> None:
    assert figure((ours,), (1.0,), target).met is met


@pytest.mark.parametrize(
    ("target", "met"),
    [
        (at_least(2.0, "worse quartile"), True),
        (at_least(2.1, "worse quartile"), False),
        (at_most(4.0, "worse quartile"), True),
        (at_most(3.9, "worse quartile"), False),
    ],
)
def test_a_verdict_may_be_the_worse_quartiles(target: Goal, met: bool) -> None:
    """Of 1 to 5 the quartiles are 2 and 4: the lower one counts where more is better."""
    assert figure((4.0, 1.0, 3.0, 2.0, 5.0), (1.0,) * 5, target).met is met


def test_sides_take_turns_in_going_first() -> None:
    assert [alternated("abc", run) for run in (0, 1, 2)] == [list("abc"), list("cba"), list("abc")]

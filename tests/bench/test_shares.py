"""Shares over a daemon: what is entitled, how attained is judged, and what the daemon is told."""

from __future__ import annotations

import tomllib

import pytest

from bench.fair import CONTENDED_SLOTS, CROWD_WEIGHTS
from bench.measure import BenchError
from bench.shares import CONTESTS, ContestSide, contest_figures, daemon_settings

STREAMS, BY_WEIGHT = CONTESTS["streams"], CONTESTS["weights"]


def test_entitled_are_slots_by_water_filling() -> None:
    assert sum(STREAMS.entitled.values()) == CONTENDED_SLOTS
    assert all(STREAMS.entitled[name] <= streams for name, streams in STREAMS.streams.items())
    for contest in CONTESTS.values():
        assert contest.streams.keys() == contest.entitled.keys()
    assert min(BY_WEIGHT.streams.values()) >= CONTENDED_SLOTS, "more requests than rows"


def test_what_was_attained_is_judged_by_what_was_entitled() -> None:
    fair, unfair = ContestSide("fair"), ContestSide("unfair")
    fair.add(BY_WEIGHT, {"light": 100, "middle": 200, "heavy": 400}, 7.0)
    unfair.add(BY_WEIGHT, {"light": 235, "middle": 235, "heavy": 235}, 7.0)
    jain, tokens = contest_figures("weights", BY_WEIGHT, fair, unfair)
    assert jain.spread.median == pytest.approx(1.0) and jain.met
    assert jain.details["unfair"] == pytest.approx((1 + 1 / 2 + 1 / 4) ** 2 / (3 * 21 / 16))
    assert tokens.spread.median == pytest.approx(700 / 705) and tokens.met
    fair.add(BY_WEIGHT, {"light": 100, "middle": 100, "heavy": 100}, 7.0)
    unfair.add(BY_WEIGHT, {"light": 235, "middle": 235, "heavy": 235}, 7.0)
    jain, tokens = contest_figures("weights", BY_WEIGHT, fair, unfair)
    assert jain.met is False and tokens.met is False, "the worse quartile is judged"


def test_who_got_nothing_is_no_figure() -> None:
    with pytest.raises(BenchError, match="somebody got nothing"):
        ContestSide("fair").add(STREAMS, {"a": 1, "b": 0, "c": 2, "d": 4}, 1.0)


def test_who_starves_where_nothing_is_fair_is_a_figure() -> None:
    unfair = ContestSide("unfair")
    unfair.add(BY_WEIGHT, {"light": 700, "middle": 0, "heavy": 0}, 7.0)
    assert unfair.jain == [pytest.approx(1 / 3)] and unfair.tokens_per_s == [100.0]
    with pytest.raises(BenchError, match="somebody got nothing"):
        unfair.add(BY_WEIGHT, {"light": 0, "middle": 0, "heavy": 0}, 7.0)


def test_the_daemon_is_told_slots_and_weights() -> None:
    told = tomllib.loads(daemon_settings())
    assert told["limits"] == {"slots_max": CONTENDED_SLOTS}
    assert {name: said["weight"] for name, said in told["principals"].items()} == CROWD_WEIGHTS

"""What is drawn from streams' gaps, idle and while a prompt lands among them."""

from __future__ import annotations

import pytest

from bench.measure import BenchError
from bench.peers.disturbance import Alternation
from bench.peers.gaps import (
    gap_measures,
    overlapping,
    own_part,
    percentile,
    stretch_rows,
    within,
)
from bench.peers.heard import Heard
from bench.peers.question import Measures


def test_percentiles_are_values_that_were_seen() -> None:
    values = [float(n) for n in range(1, 101)]
    assert (percentile(values, 0.5), percentile(values, 0.99)) == (50.0, 99.0)
    assert percentile([3.0], 0.99) == 3.0


def test_gaps_count_that_overlap_the_landing() -> None:
    reply = Heard(0.0, (1.0, 2.0, 5.0, 6.0), 6.0, "", 1)
    assert overlapping([reply], 3.0, 4.0) == [3.0]
    assert overlapping([reply], 1.5, 5.5) == [1.0, 3.0, 1.0]
    assert overlapping([reply], 7.0, 8.0) == []


def test_who_asks_while_a_prompt_lands_waits_apart_from_gaps() -> None:
    """Streams: one in the middle of its reply, one that waits all the while, one long before."""
    long = Heard(10.0, (20.0,), 21.0, "", 8000)
    heard = [
        Heard(1.0, (2.0, 11.0, 12.0), 13.0, "", 1),
        Heard(12.0, (19.0, 19.5), 22.0, "", 1),
        Heard(0.0, (1.0, 2.0), 3.0, "", 1),
    ]
    found = gap_measures([0.5, 0.25, 0.25], heard, long)
    assert (found["landing_most_s"], found["landing_p50_s"]) == (9.0, 1.0)
    assert (found["landing_wait_most_s"], found["landing_first_text_s"]) == (7.0, 10.0)
    assert (found["idle_p50_s"], found["idle_p99_s"]) == (0.25, 0.5)
    assert "landing_wait_most_s" not in gap_measures([0.5], heard[:1], long)
    with pytest.raises(BenchError, match="nothing was measured"):
        gap_measures([0.5], heard[2:], long)


def test_gaps_are_idle_between_the_last_beginning_and_the_first_end() -> None:
    heard = [Heard(0.0, (1.0, 2.0, 4.0, 7.0), 7.0, "", 1), Heard(0.0, (1.5, 3.0, 5.0), 5.0, "", 1)]
    assert within(heard, 1.5, 5.0) == [2.0, 1.5, 2.0]
    assert within(heard, 6.0, 5.0) == []


def test_a_landing_shares_the_reading_with_who_asks_meanwhile() -> None:
    """One was read before it, one waits still when it has landed, one is between."""
    long = Heard(10.0, (20.0,), 21.0, "", 600, cached_tokens=0)
    heard = [
        Heard(1.0, (2.0, 11.0), 13.0, "", 900, cached_tokens=0),
        Heard(19.0, (22.0,), 23.0, "", 150, cached_tokens=50),
        Heard(12.0, (14.0,), 15.0, "", 600, cached_tokens=500),
    ]
    assert own_part(heard, long) == 0.75
    assert own_part([*heard, Heard(12.0, (14.0,), 15.0, "", 600)], long) is None, "untold"


def test_landings_are_told_by_the_idle_gaps_of_all_alternations() -> None:
    measures = {"landing_p50_s": 2.0, "landing_p99_s": 8.0}
    same: Alternation[Measures] = Alternation({"a": measures, "b": measures}, 0.0)
    rows = stretch_rows([same, same], {"a": [1.0, 2.0, 4.0], "b": [4.0]})
    assert {(r.contestant, r.measure): r.values for r in rows} == {
        ("a", "landing_p50_over_idle"): (1.0, 1.0),
        ("a", "landing_p99_over_idle"): (4.0, 4.0),
        ("b", "landing_p50_over_idle"): (0.5, 0.5),
        ("b", "landing_p99_over_idle"): (2.0, 2.0),
    }


def test_whose_streams_never_all_speak_has_nothing_to_be_told_by() -> None:
    measures = {"landing_p50_s": 2.0, "landing_p99_s": 8.0}
    found: Alternation[Measures] = Alternation({"a": measures, "b": measures}, 0.0)
    assert {row.contestant for row in stretch_rows([found], {"a": [1.0], "b": []})} == {"a"}

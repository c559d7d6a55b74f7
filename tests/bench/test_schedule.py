"""What is drawn from the schedule's turns."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.peers.disturbance import Alternation
from bench.peers.heard import Heard
from bench.peers.pairs import PairPlan, WrittenPair
from bench.peers.question import Measures, Question
from bench.peers.schedule import arrival_measures, schedule_figures


def question() -> Question:
    pair = WrittenPair(PairPlan("bundled", "Bundled pair"), Path(), Path())
    return Question("schedule", pair, (), 2, False, 2)


def landed(
    p50: float, p99: float, first: float, alone: float, part: float = 1.0
) -> Alternation[Measures]:
    values = {
        "landing_p50_s": p50, "landing_p99_s": p99, "landing_first_text_s": first,
        "alone_first_text_s": alone, "landing_own_part": part,
    }  # fmt: skip
    return Alternation({"ours": values}, 0.0)


def test_a_landing_is_judged_by_idle_gaps_and_by_the_prompts_time_alone() -> None:
    turns = [landed(0.16, 0.24, 8.0, 3.0), landed(0.18, 0.30, 8.0, 3.0)]
    p50, p99, first = schedule_figures(question(), "ours", turns, {"ours": [0.1, 0.1, 0.3]})
    assert p50.ratios == pytest.approx([1.6, 1.8]) and p50.met is False
    assert p99.ratios == pytest.approx([2.4, 3.0]) and p99.met is False
    assert first.ratios == pytest.approx([1.0, 1.0]) and first.met is True
    within = [landed(0.16, 0.24, 8.0, 3.0)] * 2
    assert all(f.met for f in schedule_figures(question(), "ours", within, {"ours": [0.1]}))
    late = [landed(0.16, 0.24, 10.5, 3.0)] * 2
    *_, first = schedule_figures(question(), "ours", late, {"ours": [0.1]})
    assert first.met is False
    shared = [landed(0.16, 0.24, 16.0, 3.0, 0.5)] * 2
    *_, first = schedule_figures(question(), "ours", shared, {"ours": [0.1]})
    assert first.ratios == pytest.approx([1.0, 1.0]), "half of what was read was of others"


def test_arrivals_are_told_by_first_texts_and_gaps_of_all_replies() -> None:
    heard = [
        Heard(0.0, (1.0, 1.5, 2.5), 2.5, "a b", 10, drafts=4, accepted=3),
        Heard(1.0, (4.0, 4.25), 4.5, "c", 10, drafts=2, accepted=1),
    ]
    found = arrival_measures(heard)
    assert (found["first_text_p50_s"], found["first_text_p99_s"]) == (1.0, 3.0)
    assert (found["gap_p50_s"], found["gap_p99_s"]) == (0.5, 1.0)
    assert found["arrivals_tokens_per_s"] > 0.0
    assert (found["drafts"], found["accepted"]) == (6.0, 4.0)

"""The contest of depths: which fixed depth is the best, and what each figure compares."""

from __future__ import annotations

import os
import resource
import time

import pytest

from bench.clients import Group, Served, TimedReply
from bench.depths import DepthContest, another_process
from sapwood.client.values import Usage


def served(tokens_s: float) -> Served:
    return Served(
        (TimedReply(0.0, 0.1, 1.0, int(tokens_s), Usage(1, 0, 1, 1, 1, 1, 1, 0.0, 0.0, 0.0)),)
    )


def serve(group: Group, *rates: float) -> None:
    group.served += [served(rate) for rate in rates]


def test_the_best_fixed_depth_is_judged_by_its_median() -> None:
    contest = DepthContest(4, (0, 1, 2))
    serve(contest.fixed[0], 10, 10, 10)
    serve(contest.fixed[1], 20, 21, 22)
    serve(contest.fixed[2], 90, 15, 15)  # once by luck
    serve(contest.auto, 20, 20, 20)
    serve(contest.beside[0], 9, 9, 9)
    serve(contest.beside[1], 10, 10, 10)
    plain, best, beside = contest.figures()
    assert plain.ratios == [2.0, 2.0, 2.0] and plain.met
    assert best.details["best_depth"] == 1
    assert best.spread.median == pytest.approx(20 / 21)
    assert best.met is False, "the worse quartile is judged"
    assert (beside.spread.median, beside.met) == (0.9, False)


def test_another_process_computes_until_it_is_over() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    with another_process() as pid:
        time.sleep(2)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime > before + 0.1

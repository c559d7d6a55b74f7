"""Rows of another build: they take steps in a process of their own, and say when they cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.before import BEFORE, before_figures, rows_before, taken_out
from bench.machine import ROOT
from bench.measure import BenchError
from tests.model.reference import checkpoint

PAIR = ["--model", str(checkpoint("e2b-tiny").path)]


@pytest.mark.long
def test_rows_of_the_tree_that_is_named_take_steps() -> None:
    with rows_before(ROOT, PAIR, 2, 60) as step:
        assert 0 < step() < 60
        assert 0 < step() < 60


def test_a_build_that_cannot_run_is_no_figure(tmp_path: Path) -> None:
    (tmp_path / "sapwood").mkdir()
    (tmp_path / "sapwood/__init__.py").write_text("raise SystemExit(3)\n")
    with rows_before(tmp_path, PAIR, 2, 60) as step, pytest.raises(BenchError, match="ended"):
        step()


def test_a_commit_that_git_does_not_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="000000000000 is wanted, of a clone"):
        taken_out("0" * 40, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_tree_that_was_taken_out_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / BEFORE).mkdir()
    assert taken_out(BEFORE, tmp_path) == tmp_path / BEFORE


def test_figures_are_ratios_to_the_build_before() -> None:
    found = {"shared": [1.0], "own": [3.0], "before": [2.0]}
    shared, own = before_figures(16, found, 0.8)
    assert (shared.name, shared.ratios, shared.met) == ("before/shared/16", [0.5], True)
    assert (own.name, own.ratios, own.met) == ("before/own/16", [1.5], False)
    assert before_figures(4, found, 0.8)[0].target is None

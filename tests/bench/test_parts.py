"""A step's parts by hand: they add up to the step, each second goes to one of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from bench import parts
from bench.matmuls import MatmulWork
from bench.parts import (
    Cell,
    RepeatedStep,
    StepTime,
    account,
    build_of,
    cells,
    host_seconds,
    least_times,
    measure,
    parts_of,
)
from bench.setup import Setup
from sapwood.model.pair import Pair, load_pair
from sapwood.model.runner import Runner
from tests.model.reference import checkpoint

# Of a step, then without its drafts, then without rope too.
TIMES = [StepTime(20.0, 9.0), StepTime(12.0, 5.0), StepTime(9.0, 4.0)]


@pytest.fixture(scope="module")
def pair() -> Pair:
    return load_pair(checkpoint("e2b-tiny"), checkpoint("e2b-tiny-assistant"), "float32")


@pytest.fixture
def runner(pair: Pair) -> Iterator[Runner]:
    runner = Runner(pair, slots_max=4, depth_max=8)
    yield runner
    runner.close()


def test_a_part_is_what_the_step_gets_shorter_by() -> None:
    assert parts_of(["draft", "rope"], TIMES) == {
        "draft": StepTime(8.0, 4.0),
        "rope": StepTime(3.0, 1.0),
        "rest": StepTime(9.0, 4.0),
    }


def test_the_account_adds_up_to_the_step_and_the_core() -> None:
    """Of 8 s of drafting 5 are its matmuls, of the 9 that are left 7 are the target's."""
    found = parts_of(["draft", "rope"], TIMES)
    told = account(found, target_s=7.0, drafter_s=5.0, host_s=0.5)
    assert told == {
        "target_matmuls": 7.0, "drafter_matmuls": 5.0, "draft": 3.0, "rope": 3.0, "rest": 2.0,
        "build": 9.0, "host": 0.5, "step": 29.5,
    }  # fmt: skip
    assert build_of(found) == {"build_draft": 4.0, "build_rope": 1.0, "build_rest": 4.0}


def test_without_drafts_there_is_no_drafter_to_take_out() -> None:
    assert Cell(4, 3).parts == ["draft", *Cell(4, 0).parts]
    assert (Cell(4, 3).target, Cell(4, 3).drafter) == (
        MatmulWork(16, 16),
        MatmulWork(drafting=4, depth=3),
    )


def test_the_cells_are_the_issues() -> None:
    """And without a drafter those of depth 0."""
    plain = load_pair(checkpoint("e2b-tiny"), None, "float32")
    assert [cell.name for cell in cells(plain, quick=False)] == [
        "1x0", "4x0", "8x0", "16x0", "32x0",
    ]  # fmt: skip


def test_a_repeated_step_is_the_same_step_every_time(runner: Runner) -> None:
    """The same tokens at the same place, although the first turn committed some."""
    step, results = RepeatedStep(runner, Cell(3, 2), 40), []
    wait = runner.wait
    with mock.patch.object(runner, "wait", lambda ticket: results.append(wait(ticket))):
        times = [step.turn() for _ in range(3)]
    tokens = [[row.tokens for row in result.decoded] for result in results]
    assert [row[0] for row in tokens[0]] == [row[0] for row in tokens[2]]
    assert [runner.caches.offset(slot) for slot in range(3)] == [40, 40, 40]
    assert all(time.device_s > 0 and time.build_s > 0 for time in times)
    step.close()
    assert not any(runner.caches.holds(slot) for slot in range(3))


def test_every_variant_is_turned_as_often_and_the_least_counts(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two turns of eight variants each, and one before that does not count, quick as it was."""
    taken = iter([1.0] * 8 + [30.0] * 8 + [20.0 + variant for variant in range(8)])

    def turn(_: RepeatedStep) -> StepTime:
        return StepTime(next(taken), 0.0)

    monkeypatch.setattr(RepeatedStep, "turn", turn)
    times = least_times(runner, Cell(2, 1), 40, turns=2, turns_s=0.0)
    assert [time.device_s for time in times] == [20.0 + variant for variant in range(8)]


def test_the_core_is_timed_where_all_rows_decode(
    pair: Pair, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real step runs between two of the core's, and leaves no slot taken."""
    turns = []
    monkeypatch.setattr(RepeatedStep, "turn", lambda step: turns.append(step.plan))
    monkeypatch.setattr("bench.in_line._now", iter(range(10_000)).__next__)
    for cell in (Cell(3, 2), Cell(2, 0)):
        turns.clear()
        # By this clock each of plan, emit and commit takes a second.
        assert host_seconds(pair, runner, cell, 40) == 3.0
        assert len(turns) >= 8
        assert {(len(p.decodes), p.decodes[0].depth) for p in turns} == {(cell.rows, cell.depth)}
        assert not any(runner.caches.holds(slot) for slot in range(4))


@pytest.mark.long
def test_it_measures_a_pair_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the times are: each account adds up, and its matmuls are the figure's peer."""
    monkeypatch.setattr(parts, "least_times", quick_least_times)
    monkeypatch.setattr(parts, "_QUICK_ROW_COUNTS", (1, 2))
    folder = checkpoint("e2b-tiny").path
    setup = Setup(Path("none"), quick=True, seed=0)
    setup.model, setup.draft = str(folder), str(folder.parent / "e2b-tiny-assistant")
    figures = measure(setup)
    assert [figure.name for figure in figures] == [
        f"parts/{cell}" for cell in ("1x0", "1x3", "2x0", "2x3")
    ]
    for figure in figures:
        seconds = dict(figure.details)
        step, build = seconds.pop("step_s"), seconds.pop("build_s")
        built = [seconds.pop(name) for name in list(seconds) if name.startswith("build_")]
        assert build + sum(seconds.values()) == pytest.approx(step)
        assert sum(built) == pytest.approx(build) and build > 0
        assert list(figure.ours.values) == pytest.approx([step])
        own = seconds["target_matmuls_s"] + seconds["drafter_matmuls_s"]
        assert figure.peer.values == (own,) and own > 0
        assert (seconds["drafter_matmuls_s"] > 0) == figure.name.endswith("x3")


def quick_least_times(runner: Runner, cell: Cell, context_tokens: int) -> list[StepTime]:
    return least_times(runner, cell, context_tokens, turns=1, turns_s=0.0)

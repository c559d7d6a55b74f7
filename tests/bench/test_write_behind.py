"""The bench of what is written behind: its loop writes, its turns count what they say."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bench.in_line import InLineDisk, InLineStep, in_line, served_in_line
from bench.measure import BenchError
from bench.write_behind import CountingPager, InLineSide, StepTurn, behind_figures, turn_of
from sapwood.daemon.engine.loaded import Loaded
from sapwood.scheduler.events import Request
from sapwood.scheduler.plan import StepPlan
from sapwood.scheduler.sampling import Sampling
from tests.system.pairs import pair

STEP = InLineStep(StepPlan(1), 0.0, 0.0, 0.0, run_s=1.0, cpu_s=2.0)


@pytest.mark.timeout(300)
def test_what_is_due_is_written_while_others_decode(tmp_path: Path) -> None:
    """By the product's own port and thread: and each block is safetensors in the folder."""
    rows = [
        Request(
            id, b"bench", tuple(range(30, 30 + tokens)), 12, Sampling(), ignore_eos=True, depth=0
        )
        for id, tokens in ((1, 300), (2, 20))
    ]
    with in_line(pair("e2b-tiny"), 1 << 30, tmp_path / "cache") as loaded:
        assert loaded.pager is not None
        pager = CountingPager(loaded.pager)
        disk = InLineDisk(replace(loaded, pager=pager))
        try:
            for row in rows:
                served_in_line(loaded, [row], disk=disk)
            while not loaded.core.stats().disk.written_bytes:
                time.sleep(0.01)
                disk.take(loaded.core)
        finally:
            disk.close()
    assert pager.copied
    assert list((tmp_path / "cache").glob("*.full.safetensors"))


def test_a_turn_is_its_median_round_and_one_late_step_is_not() -> None:
    late = replace(STEP, run_s=100.0)
    turn = turn_of([*[[STEP] * 4] * 5, [late, *[STEP] * 3]], 6, 0.5, writes=True)
    assert turn == StepTurn(1.0, 2.0, 6, 24, 0.5)


@pytest.mark.parametrize(
    ("last", "blocks", "told"), [(3, 6, "ended before"), (4, 2, "only 2 blocks")]
)
def test_a_run_that_says_nothing_is_refused(last: int, blocks: int, told: str) -> None:
    """Whose rows ended too soon, or with hardly anything to write."""
    with pytest.raises(BenchError, match=told):
        turn_of([*[[STEP] * 4] * 5, [STEP] * last], blocks, 0.0, writes=True)
    assert turn_of([[STEP] * 4] * 6, 0, 0.0, writes=False).blocks == 0


def test_whoever_computed_beside_it_is_said() -> None:
    def side(*turns: StepTurn) -> InLineSide:
        return InLineSide(_NOBODY, turns=list(turns))

    behind = side(StepTurn(1.02, 2.2, 24, 96, 0.01), StepTurn(1.02, 2.2, 24, 96, 0.2))
    without = side(StepTurn(1.0, 2.0, 0, 96, math.nan), StepTurn(1.0, 2.0, 0, 96, 0.0))
    step, cpu = behind_figures(behind, without)
    assert step.met and step.disturbed and step.details["foreign_share_most"] == 0.2
    assert step.spread.median == pytest.approx(1.02) and cpu.spread.median == pytest.approx(1.1)
    calm = side(*(replace(turn, foreign=0.0) for turn in behind.turns))
    assert not behind_figures(calm, without)[0].disturbed


_NOBODY: Loaded = None  # type: ignore[assignment]  # figures ask no core

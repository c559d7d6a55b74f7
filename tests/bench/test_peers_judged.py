"""What is drawn from peers' runs: who disturbed, best peers, verdicts, joined records."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from bench.measure import BenchError
from bench.peers.disturbance import TRIES, Watch, alternate, foreign_share
from bench.peers.heard import Heard
from bench.peers.pages import page_lines, verdict_line, write_pages
from bench.peers.pairs import PairPlan, WrittenPair
from bench.peers.processes import (
    CpuReading,
    descendants,
    parse_busy,
    parse_peak,
    parse_stat,
    peak_memory_bytes,
    read_cpu,
)
from bench.peers.question import Question, rows_of
from bench.peers.records import PeersRecord, join, read_records, write_record
from bench.peers.rows import MeasuredRow, PairRows, least, most, ratio
from bench.peers.throughput import doublings, throughput_figures
from bench.peers.turns import turn_measures


def row(who: str, *values: float, clients: int = 1, disturbed: int = 0) -> MeasuredRow:
    return MeasuredRow(who, "tokens_per_s", "tokens/s", clients, values, {}, disturbed)


class Shares(Watch):
    """Says what it was told to, turn by turn."""

    def __init__(self, shares: Sequence[float]) -> None:
        self._left = list(shares)

    def begin(self) -> None:
        pass

    def end(self) -> float:
        return self._left.pop(0)


def alternation(shares: Sequence[float], again: bool = True) -> tuple[Any, list[tuple[str, int]]]:
    """Of two sides, and the turns that were taken; a value is the number of its turn."""
    taken: list[tuple[str, int]] = []

    async def turn(side: str, number: int) -> int:
        taken.append((side, number))
        return number

    async def run() -> Any:
        return await alternate(("a", "b"), 1, turn, Shares(shares), lambda: again)

    return anyio.run(run), taken


def test_a_quiet_alternation_is_measured_once_and_the_order_turns() -> None:
    found, taken = alternation([0.01, 0.04])
    assert taken == [("b", TRIES), ("a", TRIES)]  # run 1 goes backwards
    assert (found.disturbed, found.foreign, found.tries) == (False, 0.04, 1)


def test_a_disturbed_alternation_is_measured_again_with_other_prompts() -> None:
    found, taken = alternation([0.01, 0.3, 0.02, 0.03])
    assert [number for _, number in taken] == [TRIES, TRIES, TRIES + 1, TRIES + 1]
    assert (found.disturbed, found.values, found.tries) == (False, {"a": 4, "b": 4}, 2)


def test_of_three_disturbed_ones_the_least_disturbed_counts_and_is_marked() -> None:
    found, taken = alternation([0.5, 0.1, 0.1, 0.2, 0.4, 0.4])
    assert len(taken) == 2 * TRIES
    assert (found.disturbed, found.foreign, found.values["a"]) == (True, 0.2, TRIES + 1)


def test_nothing_is_measured_again_when_time_is_over() -> None:
    found, taken = alternation([0.5, 0.1], again=False)
    assert len(taken) == 2 and found.disturbed


def test_nobody_is_disturbed_where_the_system_does_not_tell() -> None:
    found, taken = alternation([math.nan, math.nan])
    assert len(taken) == 2 and not found.disturbed and math.isnan(found.foreign)


def test_foreign_is_what_no_child_of_ours_used() -> None:
    parents = {10: 1, 11: 10, 12: 11, 99: 1}
    before = CpuReading(100.0, {10: 5.0, 11: 0.0, 12: 1.0, 99: 7.0}, parents)
    after = CpuReading(106.0, {10: 6.0, 11: 1.0, 12: 2.0, 99: 9.0}, parents)
    assert foreign_share(before, after, 10, 12.0) == pytest.approx(3.0 / 12.0)
    assert foreign_share(after, after, 10, 12.0) == 0.0
    assert descendants(11, parents) == {11, 12}


def test_a_child_that_ended_is_still_ours() -> None:
    """Its time moves into its parent's account of children."""
    before = CpuReading(100.0, {10: 5.0, 11: 3.0}, {10: 1, 11: 10})
    after = CpuReading(104.0, {10: 5.0 + 3.0 + 4.0}, {10: 1})
    assert foreign_share(before, after, 10, 8.0) == 0.0


def test_proc_is_read_as_it_is_written() -> None:
    tick = 1 / os.sysconf("SC_CLK_TCK")
    stat = "7 (odd ) name) S 3 7 7 0 -1 0 0 0 0 0 100 20 30 4 20 0 1 0 5 0 0"
    parent, seconds = parse_stat(stat)
    assert parent == 3 and seconds == pytest.approx(154 * tick)
    assert parse_busy("cpu  1 2 4 1000 2000 8 16 32 64 0\ncpu0 1") == pytest.approx(63 * tick)
    assert parse_peak("Name:\tx\nVmHWM:\t    12 kB\n") == 12 * 1024
    assert parse_peak("Name:\tkthread\n") == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_child_counts_in_time_and_memory() -> None:
    code = "x = bytearray(64 << 20)\nfor i in range(10**9):\n pass"
    child = subprocess.Popen([sys.executable, "-c", code])
    try:
        with anyio.from_thread.start_blocking_portal() as portal:
            portal.call(anyio.sleep, 0.5)
        reading = read_cpu()
        assert reading is not None and reading.parents[child.pid] == os.getpid()
        assert reading.of_tree(os.getpid()) >= reading.by_pid[child.pid] > 0
        assert (peak_memory_bytes(child.pid) or 0) > 64 << 20
    finally:
        child.kill()
        child.wait()


def test_the_best_peer_is_the_best_of_each_alternation() -> None:
    rows = PairRows([row("x", 1.0, 5.0, 3.0), row("y", 2.0, 1.0, 4.0, disturbed=1)])
    best = rows.best(("x", "y", "absent"), "tokens_per_s", 1)
    assert best is not None and best.values == (2.0, 5.0, 4.0) and best.disturbed == 1
    assert best.details == {"median_of_x": 3.0, "median_of_y": 2.0}
    assert rows.best(("absent",), "tokens_per_s", 1) is None


def test_targets_judge_the_worse_quartile_of_five_alternations() -> None:
    ours, peer = row("ours", 1.0, 2.0, 3.0, 4.0, 5.0), row("peer", *[1.0] * 5)
    (enough,) = ratio("a", "A", ours, peer, least(2.0))
    (missed,) = ratio("a", "A", ours, peer, least(2.5))  # the median is 3
    (less,) = ratio("a", "A", ours, peer, most(3.5))
    assert (enough.met, missed.met, less.met) == (True, False, False)
    assert ratio("a", "A", ours, None, least(2.0)) == []


def test_a_figure_is_disturbed_if_either_side_was() -> None:
    quiet, loud = row("ours", 1.0), row("peer", 1.0, disturbed=1)
    assert ratio("a", "A", quiet, loud, None)[0].disturbed
    assert not ratio("a", "A", quiet, quiet, None)[0].disturbed


def test_each_pair_has_the_targets_that_were_set_for_it() -> None:
    rows = [row(who, 3.0, clients=4) for who in ("ours", "depth 0", "mlx_lm", "smg")]

    def targets(pair: str) -> dict[str, float]:
        figures = throughput_figures(pair, pair, PairRows(rows))
        return {f.name: f.target.bound for f in figures if f.target}

    assert targets("heavy") == {
        "throughput/heavy/best/4": 3.5,
        "throughput/heavy/plain/4": 1.0,
        "throughput/heavy/auto/4": 0.98,
    }
    assert targets("bundled")["throughput/bundled/mlx_lm/4"] == 1.7
    assert "throughput/balanced/best/4" not in targets("balanced")
    some = PairRows([row(who, 3.0, clients=8) for who in ("ours", "depth 0", "mlx_vlm")])
    names = [figure.name for figure in throughput_figures("heavy-60", "H", some)]
    assert names == ["throughput/heavy-60/auto/8"]  # nobody is the best who was not beside the rest


def test_the_worst_doubling_of_each_alternation_counts() -> None:
    rows = PairRows(
        [
            row("ours", 10.0, 10.0, clients=1),
            row("ours", 12.0, 9.0, clients=2),
            row("ours", 11.0, 18.0, clients=4),
            row("ours", 1.0, 1.0, clients=16),  # 8 was not measured: no doubling
        ]
    )
    (figure,) = doublings("heavy", "Heavy", rows)
    assert figure.ratios == pytest.approx([11 / 12, 9 / 10]) and figure.met is False
    assert figure.details == {"doubled_from_in_run_1": 2, "doubled_from_in_run_2": 1}


def test_an_error_in_a_turn_names_the_contestant_also_out_of_a_group() -> None:
    async def take(side: str, number: int) -> dict[str, float]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fail)
        return {}

    async def fail() -> None:
        raise BenchError("broken")

    with pytest.raises(BenchError, match=r"^b: broken$"):
        anyio.run(question(0.0).alternations, ["b"], take, "what")


def test_rows_hold_every_alternation_and_sum_counts() -> None:
    found, _ = alternation([0.0, 0.0])
    turns = [{"rate": 1.0, "drafts": 3.0}, {"rate": 2.0, "drafts": 4.0}]
    loud = [type(found)({"a": turn}, share) for turn, share in zip(turns, (0.0, 0.9), strict=True)]
    (made,) = rows_of(loud, {"rate": "1/s", "absent": "s"}, 8, ("drafts", "unknown"))
    assert (made.values, made.details, made.disturbed) == ((1.0, 2.0), {"drafts": 7.0}, 1)


def test_what_is_computed_again_is_told_only_where_every_reply_says_it() -> None:
    known = Heard(0.0, (1.0,), 2.0, "a b", 100, cached_tokens=70)
    found = turn_measures([known, known])
    assert found["recomputed_tokens"] == 60.0 and found["turns_s"] == 2.0
    assert "recomputed_tokens" not in turn_measures([known, Heard(0.0, (1.0,), 2.0, "a", 5)])


def content(**changed: Any) -> PeersRecord:
    figures = ratio("q/a", "What", row("ours", 2.0), row("mlx_lm", 1.0, disturbed=1), least(3.0))
    made = {
        "schema": 1, "commit": "c" * 40, "measured_at": "2026-01-01T00:00:00", "quick": False,
        "machine": {"cpu": "x", "cores": 2, "memory_bytes": 1, "system": "s", "device": "d"},
        "blas": "b", "question": "throughput", "figures": [f.as_json() for f in figures],
        "pair": {"name": "heavy", "title": "Heavy", "target_weights": 1e6, "drafter_share": 0.1},
        "rows": [row("ours", 2.0).as_json(), row("mlx_lm", 1.0, clients=4, disturbed=1).as_json()],
    }  # fmt: skip
    return PeersRecord(json.loads(json.dumps(made | changed)))


def test_records_of_another_commit_machine_or_length_are_not_joined(tmp_path: Path) -> None:
    other = {"cpu": "y", "cores": 2, "memory_bytes": 1, "system": "s", "device": "d"}
    written = [
        content(),
        content(question="turns", measured_at="2026-01-02T00:00:00"),
        content(question="gaps", commit="d" * 40),
        content(question="first", machine=other),
        content(question="noisy", quick=True),
    ]
    for record in written:
        write_record(record, tmp_path)
    (tmp_path / "strange.json").write_text('{"schema": 1}')
    joined = join(read_records(tmp_path), ("throughput", "noisy", "first", "gaps", "turns"))
    assert [r.question for r in joined.records] == ["throughput", "turns"]
    assert {r.question for r in joined.left_out} == {"gaps", "first", "noisy"}


def test_the_page_has_a_line_for_each_target_and_marks_what_was_disturbed(tmp_path: Path) -> None:
    joined = join([content(), content(question="turns", commit="d" * 40)], ("throughput", "turns"))
    lines = list(page_lines(joined))
    assert "| q/a | What | 2 | 2 | ≥ 3 | missed, disturbed, 1 runs only |" in lines
    assert "| tokens_per_s, tokens/s | 1 | 4 |" in lines
    assert "| ours | 2 (2 to 2) |  |" in lines and "| mlx_lm |  | 1 (1 to 1) * |" in lines
    assert any("Left out" in line and "turns heavy (dddddddddddd)" in line for line in lines)
    paths = write_pages(joined, tmp_path)
    assert [path.name for path in paths] == ["results.md", "throughput.svg"]
    assert "Heavy: tokens_per_s" in paths[1].read_text()
    assert "Nothing has been measured." in list(page_lines(join([], ())))


def test_a_line_shows_the_quartile_that_is_judged() -> None:
    ours, peer = row("ours", 1.0, 2.0, 3.0, 4.0, 5.0), row("peer", *[1.0] * 5)
    (low,) = ratio("a", "A", ours, peer, least(1.0))
    (high,) = ratio("a", "A", ours, peer, most(5.0))
    assert verdict_line(low.as_json()) == "| a | A | 3 | 2 | ≥ 1 | met |"
    assert verdict_line(high.as_json()) == "| a | A | 3 | 4 | ≤ 5 | met |"


def question(deadline: float, quick: bool = False) -> Question:
    pair = WrittenPair(PairPlan("p", "P"), Path("target"), Path("drafter"))
    made = Question("q", pair, (), 3, quick, 10**6)  # so many cores that nobody disturbs
    made.deadline = deadline
    return made


@pytest.mark.parametrize(("deadline", "runs"), [(math.inf, 3), (0.0, 1)])
def test_parts_take_turns_and_all_get_as_many_alternations(deadline: float, runs: int) -> None:
    taken: list[tuple[str, str, int]] = []

    async def take(part: str, side: str, number: int) -> dict[str, float]:
        taken.append((part, side, number // TRIES))
        return {"value": float(number)}

    async def run() -> dict[str, Any]:
        parts = {part: (["a", "b"], partial(take, part)) for part in ("x", "y")}
        return await question(deadline).rounds(parts)

    found = anyio.run(run)
    assert {part: len(made) for part, made in found.items()} == {"x": runs, "y": runs}
    assert [part for part, _, _ in taken] == ["x", "x", "y", "y"] * runs
    sides = [side for part, side, _ in taken if part == "x"]
    assert sides == ["a", "b", "b", "a", "a", "b"][: 2 * runs]


def test_a_quick_run_measures_nothing_again() -> None:
    assert question(math.inf).goes_on() and not question(0.0).goes_on()
    assert not question(math.inf, quick=True).goes_on()

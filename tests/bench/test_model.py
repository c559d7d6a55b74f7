"""The step model gives what was counted and reckoned apart; the page is what the model gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import model
from bench.families import FAMILIES
from bench.reports import CALIBRATION, CHIPS, ROUND_REPORTS, SPEED_REPORTS
from bench.step_graphs import (
    STEP_GRAPHS,
    graph_count,
    graphs_read,
    graphs_text,
    peer_graph_count,
)
from bench.step_work import BITS, NODE_S, Chip, StepWork, launch_s, round_tokens
from sapwood.model.checkpoint.config import PACKINGS


def step(family: str, clients: int = 1, depth: int = 0, peer: bool = False) -> StepWork:
    """With a drafter as it is released."""
    return StepWork(FAMILIES[family], clients, depth, draft_packing="bf16", peer=peer)


# Reckoned by hand for one client with 1,000 tokens, before there was this model.
@pytest.mark.parametrize(
    ("family", "depth", "gigabytes"),
    [("E2B", 0, 1.31), ("E2B", 3, 1.40), ("26B-A4B", 0, 2.37), ("26B-A4B", 3, 7.10)],
)
def test_bytes_are_those_reckoned_apart(family: str, depth: int, gigabytes: float) -> None:
    assert step(family, depth=depth).bytes / 1e9 == pytest.approx(gigabytes, rel=0.01)


# Bytes of K/V a token, sliding and full: what the product reads off the releases' configs, in
# tests/model/checkpoint/test_config_file.py; where layers borrow, each of them reads.
@pytest.mark.parametrize(
    ("family", "sliding", "full"),
    [("E2B", 12_288 * 28 // 12, 6_144 * 7 // 3), ("E4B", 40_960 * 35 // 20, 16_384 * 7 // 4),
     ("12B", 327_680, 16_384), ("26B-A4B", 204_800, 20_480), ("31B", 819_200, 81_920)],
)  # fmt: skip
def test_attention_reads_the_window_and_the_whole(family: str, sliding: int, full: int) -> None:
    shape = FAMILIES[family]
    assert shape.kv_read_bytes(1) == sliding + full
    assert shape.kv_read_bytes(8000) == shape.window * sliding + 8000 * full


def test_a_draft_of_26b_reads_its_head_whole() -> None:
    """839 MB of weights in bfloat16, 537 of them the head; 0.24 GB in 4 bits."""
    shape = FAMILIES["26B-A4B"]
    assert shape.drafter_weights * 2 / 1e6 == pytest.approx(839, abs=1)
    assert shape.drafter_weights * 4.5 / 8 / 1e9 == pytest.approx(0.24, abs=0.005)
    plain, packed = (
        StepWork(shape, depth=3, draft_packing=how).seconds(CHIPS["M3 Max"])[0]
        for how in ("bf16", "4-bit")
    )
    assert packed / plain == pytest.approx(23 / 28, abs=0.03)


# Likewise, with 4 µs for each kernel and no host: total tokens/s, of a step that started so many,
# by graphs of that day at 3.4 µs.
@pytest.mark.parametrize(
    ("chip", "family", "depth", "clients", "high", "kernels"),
    [
        ("M3 Max", "E2B", 0, 1, 132, 1024), ("M3 Max", "E2B", 0, 16, 767, 1051),
        ("M3 Max", "E2B", 3, 4, 463, 1346), ("M3 Max", "E2B", 3, 16, 1032, 1346),
        ("M4 Pro", "E2B", 0, 4, 405, 1051), ("M4 Pro", "E2B", 3, 1, 232, 1319),
        ("M3 Max", "26B-A4B", 0, 4, 188, 1453), ("M3 Max", "26B-A4B", 3, 1, 89, 1703),
        ("M4 Pro", "26B-A4B", 3, 16, 384, 1910), ("M5", "26B-A4B", 0, 16, 141, 1633),
    ],
)  # fmt: skip
def test_a_devices_speeds_are_those_reckoned_apart(
    chip: str, family: str, depth: int, clients: int, high: float, kernels: int
) -> None:
    found = step(family, clients, depth)
    quick, _ = found.device_s(CHIPS[chip])
    then = quick - found.graph.kernels * launch_s()[0] + kernels * 3.4e-6
    assert clients * round_tokens(depth, 0.7) / then == pytest.approx(high, rel=0.04)


# Rows of which a step's arithmetic is: one by one to 12, then tiles of 32. 2,279,473,152 weights.
@pytest.mark.parametrize(
    ("clients", "depth", "rows"), [(1, 0, 1), (4, 2, 12), (4, 3, 32), (16, 0, 32), (16, 3, 64)]
)
def test_arithmetic_grows_by_rows_and_then_by_tiles(clients: int, depth: int, rows: int) -> None:
    found = step("E2B", clients, depth)
    drafts = depth * 11_665_408 * (32 if clients == 16 else clients)
    assert found.flops == 2 * (2_279_473_152 * rows + drafts)


# A device of 1e12 bytes and 1e13 operations a second. By hand: 0.8 and 0.6 of these.
@pytest.mark.parametrize(("family", "clients", "depth"), [("31B", 1, 0), ("26B-A4B", 16, 3)])
def test_a_device_takes_the_longer_of_bytes_and_arithmetic_and_its_kernels(
    family: str, clients: int, depth: int
) -> None:
    found = step(family, clients, depth)
    kernels = graph_count(family, clients, depth).kernels
    longer = {"31B": found.bytes / 0.8e12, "26B-A4B": found.flops / 0.6e13}[family]
    expected = [longer + kernels * launch for launch in launch_s()]
    assert found.device_s(Chip("one", 1e12, 1e13)) == pytest.approx(expected)


def test_the_host_hides_all_but_a_part_or_the_device_does() -> None:
    """Five parts of E2B's: a quick device waits for the host, a slow one for its first part."""
    found = step("E2B")
    nodes, kernels, parts = graph_count("E2B", 1, 0)
    assert parts == 5
    host = (nodes * 2.1e-6, nodes * 4.7e-6)
    at_once = Chip("a quick one", 1e18, 1e20)
    device = [kernels * launch for launch in launch_s()]
    waits = [host[i] + device[i] / 5 if host[i] > device[i] else device[i] + host[i] / 5
             for i in (0, 1)]  # fmt: skip
    assert found.seconds(at_once) == pytest.approx(waits)
    slow = found.seconds(Chip("a slow one", 1e9, 1e20))
    assert slow == pytest.approx([found.bytes / 0.8e9 + device[i] + host[i] / 5 for i in (0, 1)])


def test_an_engine_that_builds_ahead_takes_the_longer_of_device_and_host() -> None:
    found = step("E2B", peer=True)
    nodes, kernels, _ = peer_graph_count("E2B")
    at_once = found.seconds(Chip("a quick one", 1e18, 1e20))
    device = [kernels * launch for launch in launch_s()]
    assert at_once == pytest.approx(
        [max(nodes * 2.1e-6, device[0]), max(nodes * 4.7e-6, device[1])]
    )
    with pytest.raises(AssertionError):
        _ = step("E2B", depth=1, peer=True).graph


def test_a_node_costs_what_was_counted() -> None:
    """Milliseconds of building a step, quickest and slowest run, by nodes."""
    counted = {1640: (4.4, 7.7), 2310: (6, 10), 2570: (5.7, 11), 3390: (7, 9)}
    quick = min(least / nodes for nodes, (least, _) in counted.items())
    slow = max(most / nodes for nodes, (_, most) in counted.items())
    assert pytest.approx((quick * 1e-3, slow * 1e-3), rel=0.02) == NODE_S


def test_the_table_reads_as_it_is_written() -> None:
    text = STEP_GRAPHS.read_text()
    found = graphs_read(text)
    assert graphs_text(found) == text and len(found) == len(FAMILIES) * (3 * 8 + 1)
    with pytest.raises(ValueError, match="expected family"):
        graphs_read("another table\n")
    assert StepWork(FAMILIES["31B"], 4, 7).graph == found["31B", 4, 7]


def test_a_round_gives_what_is_accepted_and_one() -> None:
    assert round_tokens(3, 0.7) == pytest.approx(2.533)
    assert (round_tokens(5, 0.0), round_tokens(5, 1.0)) == (1, 6)


def test_a_deep_round_takes_a_second_call_of_the_fused_kernel() -> None:
    """In E2B's 28 sliding layers from its fifth query on; in all others' not before the ninth."""
    more = {name: _growth(name, 3) - _growth(name, 2) for name in ("E2B", "E4B", "31B")}
    assert more["E2B"] >= 2 * 28 and max(more["E4B"], more["31B"]) < 10


def _growth(family: str, depth: int) -> int:
    """Kernels that one more draft adds."""
    return step(family, depth=depth + 1).graph.kernels - step(family, depth=depth).graph.kernels


def test_the_two_ends_of_a_kernels_cost_are_those_of_the_two_figures() -> None:
    found = sorted(report.launch_s * 1e6 for report in CALIBRATION)
    assert found == pytest.approx([seconds * 1e6 for seconds in launch_s()], abs=0.06)
    kernels = peer_graph_count("E2B").kernels
    rests = [1e6 * (1 / 161.5 - 1.3104e9 / (0.8 * 614e9)), 1e6 * (1 / 102.6 - 1.3104e9 / 0.32e12)]
    assert found == pytest.approx([rest / kernels for rest in rests], abs=0.03)


def test_residuals_are_what_lies_outside() -> None:
    by_place = {(r.chip.name, r.step.family.name): r.residual for r in SPEED_REPORTS}
    assert by_place["M3 Ultra", "26B-A4B"] == 0
    ends = {(r.chip.name, r.step.family.name): r.range_tokens_s for r in SPEED_REPORTS}
    assert by_place["M1 Ultra", "31B"] == pytest.approx(18.2 / ends["M1 Ultra", "31B"][0] - 1)
    assert by_place["M5 Max", "E4B"] == pytest.approx(81.8 / ends["M5 Max", "E4B"][1] - 1)
    for report in SPEED_REPORTS:
        low, high = report.range_tokens_s
        assert high == pytest.approx(1 / report.step.device_s(report.chip)[0])
        assert low == pytest.approx(report.step.tokens_s(report.chip, 0)[0])


def test_both_reports_of_rounds_say_that_drafts_cost_more() -> None:
    """As the page says in words."""
    assert len(ROUND_REPORTS) == 2
    for report in ROUND_REPORTS:
        assert report.cost > report.cost_one_by_one > max(report.range_cost)


def test_the_page_is_what_the_model_gives() -> None:
    """After a change that is meant: `python -m bench.model --write`."""
    assert model.PAGE.read_text() == model.page()


def test_what_is_not_known_is_shown_as_the_most_there_can_be() -> None:
    rows = [line.split(" | ") for line in model.page().splitlines() if line.startswith("| M5 |")]
    assert len(rows) == 3 * len(FAMILIES)
    assert all(cell[0] == "≤" for row in rows if row[1] == "16" for cell in row[2:10])
    assert all("-" in cell for row in rows if row[1] == "1" for cell in row[2:10])


def test_the_command_prints_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model, "ROOT", tmp_path)
    monkeypatch.setattr(model, "PAGE", tmp_path / "expected.md")
    assert model.main([]) == 0
    assert capsys.readouterr().out == model.page()
    assert not model.PAGE.exists()
    assert model.main(["--write"]) == 0
    assert capsys.readouterr().out == "expected.md\n"
    assert model.PAGE.read_text() == model.page()


def test_packings_of_other_modes_are_those_that_load() -> None:
    """Bits of a weight and of its group's scale (8 bits); affine has scale and bias of 16 each."""
    for mode in ("mxfp4", "mxfp8", "nvfp4"):
        (bits,), (group,) = PACKINGS[mode]
        assert BITS[mode] == bits + 8 / group
    assert BITS["4-bit"] == 4 + 2 * 16 / 64 and BITS["8-bit"] == 8 + 2 * 16 / 64

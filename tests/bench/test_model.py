"""The step model gives what was counted and reckoned apart; the page is what the model gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench import model
from bench.families import FAMILIES
from bench.reports import CALIBRATION, CHIPS, ROUND_REPORTS, SPEED_REPORTS
from bench.step_work import BITS, LAUNCH_S, MLX_LM_KERNELS, StepWork, round_tokens
from sapwood.model.checkpoint.config import PACKINGS


def step(family: str, clients: int = 1, depth: int = 0) -> StepWork:
    """With a drafter as it is released."""
    return StepWork(FAMILIES[family], clients, depth, draft_packing="bf16")


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


# Likewise, of steps as mlx-lm builds them, with 4 to 6.5 µs for each of fewer kernels: total
# tokens/s, slow and quick end.
@pytest.mark.parametrize(
    ("chip", "family", "depth", "clients", "low", "high"),
    [
        ("M3 Max", "E2B", 0, 1, 73, 132), ("M3 Max", "E2B", 0, 16, 592, 767),
        ("M3 Max", "E2B", 3, 4, 353, 463), ("M3 Max", "E2B", 3, 16, 879, 1032),
        ("M4 Pro", "E2B", 0, 4, 249, 405), ("M4 Pro", "E2B", 3, 1, 143, 232),
        ("M3 Max", "26B-A4B", 0, 4, 140, 188), ("M3 Max", "26B-A4B", 3, 1, 70, 89),
        ("M4 Pro", "26B-A4B", 3, 16, 356, 384), ("M5", "26B-A4B", 0, 16, 132, 141),
    ],
)  # fmt: skip
def test_speeds_are_those_reckoned_apart(
    chip: str, family: str, depth: int, clients: int, low: float, high: float
) -> None:
    found = replace(step(family, clients, depth), rule=MLX_LM_KERNELS).tokens_s(CHIPS[chip], 0.7)
    assert found == pytest.approx((low, high), rel=0.04)


def test_a_round_gives_what_is_accepted_and_one() -> None:
    assert round_tokens(3, 0.7) == pytest.approx(2.533)
    assert (round_tokens(5, 0.0), round_tokens(5, 1.0)) == (1, 6)


def test_a_deep_round_takes_a_second_call_of_the_fused_kernel() -> None:
    """In E2B's 28 sliding layers from its fifth query on; in all others' from the ninth on."""
    more = {name: _growth(name, 3) - _growth(name, 2) for name in ("E2B", "E4B", "31B")}
    assert more == {"E2B": 2 * 28, "E4B": 0, "31B": 0}
    assert _growth("E4B", 7) - _growth("E4B", 6) == 2 * 35
    assert _growth("31B", 7) - _growth("31B", 6) == 2 * 50


def _growth(family: str, depth: int) -> int:
    """Kernels that one more draft adds."""
    return step(family, depth=depth + 1).kernels - step(family, depth=depth).kernels


def test_the_two_ends_of_a_kernels_cost_are_those_of_the_two_figures() -> None:
    found = sorted(report.launch_s * 1e6 for report in CALIBRATION)
    assert found == pytest.approx([seconds * 1e6 for seconds in LAUNCH_S], abs=0.15)


def test_residuals_are_what_lies_outside() -> None:
    by_place = {(r.chip.name, r.step.family.name): r.residual for r in SPEED_REPORTS}
    assert by_place["M3 Ultra", "26B-A4B"] == 0
    assert by_place["M1 Ultra", "31B"] == pytest.approx(18.2 / 24.4 - 1, abs=0.01)
    assert by_place["M5 Max", "E4B"] == pytest.approx(81.8 / 69 - 1, abs=0.01)


def test_both_reports_of_rounds_say_that_drafts_cost_more() -> None:
    """As the page says in words."""
    assert len(ROUND_REPORTS) == 2
    assert all(report.cost > max(report.range_cost) for report in ROUND_REPORTS)


def test_the_page_is_what_the_model_gives() -> None:
    """After a change that is meant: `python -m bench.model --write`."""
    assert model.PAGE.read_text() == model.page()


def test_what_is_not_modelled_is_not_shown() -> None:
    rows = [line.split(" | ") for line in model.page().splitlines() if line.startswith("| M5 |")]
    assert len(rows) == 3 * len(FAMILIES)
    assert all(set(row[2:10]) == {"-"} for row in rows if row[1] == "16")
    assert all("-" not in row[2:10] for row in rows if row[1] == "1")


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

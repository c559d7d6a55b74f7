"""What sharing by reference brings, on a tiny pair: layouts compute the same and weigh as said."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import memory
from bench.memory import LAYOUTS, OWN_TOKENS, Company, Layout, figures_of, measure
from bench.setup import Setup
from sapwood.model.pair import Pair, load_pair
from tests.model.reference import checkpoint

ROWS, PREFIX = 3, 200


@pytest.fixture(scope="module")
def pair() -> Pair:
    return load_pair(checkpoint("e2b-tiny"), checkpoint("e2b-tiny-assistant"), "float32")


def test_a_prefix_weighs_once_or_in_every_row(pair: Pair) -> None:
    companies = {layout: Company(pair, layout, ROWS, PREFIX) for layout in LAYOUTS}
    per_token = pair.target_config.kv_bytes_per_token("full", 4)
    rooms = {layout: company.full_bytes // per_token for layout, company in companies.items()}
    assert rooms == {
        "copied": ROWS * 512,  # a row for 328 tokens
        "referred": PREFIX + ROWS * 256,
        "alone": ROWS * (PREFIX + 256),
    }
    for company in companies.values():
        for _ in range(2):
            company.step()
        offsets = {company.runner.caches.offset(slot) for slot in range(ROWS)}
        assert offsets == {PREFIX + OWN_TOKENS}
        company.runner.close()


def test_figures_are_ratios_to_copies_and_to_what_is_unique() -> None:
    steps: dict[Layout, tuple[float, ...]]
    steps = {"copied": (4.0, 2.0), "referred": (1.0, 1.0), "alone": (4.0, 3.0)}
    held_bytes: dict[Layout, int] = {"copied": 9, "referred": 6, "alone": 8}
    step, alone, held = figures_of(16, 100, steps, held_bytes, unique_bytes=5)
    assert step.name == "memory/step/16"
    assert step.ratios == [0.25, 0.5]
    assert alone.ratios == [1.0, 1.5]
    assert held.ratios == [1.2]


def test_it_measures_a_pair_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PREFIX_TOKENS", PREFIX)
    setup = Setup(tmp_path, quick=True, seed=0)
    setup.runs = 1
    setup.model, setup.draft = (
        str(checkpoint(f"e2b-tiny{end}").path) for end in ("", "-assistant")
    )
    names = [figure.name for figure in measure(setup)]
    assert names == [f"memory/{what}/{n}" for n in (1, 4) for what in ("step", "alone", "bytes")]

"""What sharing by reference brings, on a tiny pair: layouts compute the same and weigh as said."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import at_once, memory
from bench.at_once import measure_at_once
from bench.memory import (
    LAYOUTS,
    OWN_TOKENS,
    Company,
    HeldBytes,
    Layout,
    figures_of,
    measure,
    unique_bytes,
)
from bench.peers.prompts import fresh_questions
from bench.setup import Setup
from sapwood.cache.geometry import ring_tokens
from sapwood.model.checkpoint.locate import locate
from sapwood.model.pair import Pair, load_pair
from sapwood.scheduler.limits import Limits
from tests.model.reference import checkpoint

ROWS, PREFIX = 3, 200


@pytest.fixture(scope="module")
def pair() -> Pair:
    return load_pair(checkpoint("e2b-tiny"), checkpoint("e2b-tiny-assistant"), "float32")


def test_a_prefix_weighs_once_or_in_every_row(pair: Pair) -> None:
    companies = {layout: Company(pair, layout, ROWS, PREFIX) for layout in LAYOUTS}
    per_token = pair.target_config.kv_bytes_per_token("full", 4)
    rooms = {layout: company.held.full // per_token for layout, company in companies.items()}
    assert rooms == {
        "copied": ROWS * 512,  # a row for 328 tokens
        "referred": PREFIX + ROWS * 160,
        "alone": ROWS * (PREFIX + 160),
    }
    rings = {company.held.sliding for company in companies.values()}
    window = pair.target_config.text.window
    held = ROWS * ring_tokens(window, Limits().draft_depth_max + 1) + window
    assert rings == {held * pair.target_config.kv_bytes_per_token("sliding", 4)}
    for company in companies.values():
        for _ in range(2):
            company.step()
        offsets = {company.runner.caches.offset(slot) for slot in range(ROWS)}
        assert offsets == {PREFIX + OWN_TOKENS}
        company.runner.close()


def test_figures_are_ratios_to_copies_and_to_what_is_unique() -> None:
    steps: dict[Layout, tuple[float, ...]]
    steps = {"copied": (4.0, 2.0), "referred": (1.0, 1.0), "alone": (4.0, 3.0)}
    held: dict[Layout, HeldBytes] = {
        "copied": HeldBytes(9, 4), "referred": HeldBytes(6, 4), "alone": HeldBytes(8, 4)
    }  # fmt: skip
    step, alone, full, everything = figures_of(16, 100, steps, held, HeldBytes(5, 3))
    assert step.name == "memory/step/16"
    assert step.ratios == [0.25, 0.5]
    assert alone.ratios == [1.0, 1.5]
    assert full.ratios == [1.2]
    assert everything.ratios == [10 / 8]


def test_unique_is_each_token_once_and_in_rings_what_windows_see(pair: Pair) -> None:
    config = pair.target_config
    window = config.text.window
    full, sliding = (config.kv_bytes_per_token(kind, 4) for kind in ("full", "sliding"))
    assert unique_bytes(pair, 3, 500) == ((500 + 3 * OWN_TOKENS) * full, 4 * window * sliding)


def test_more_run_at_once_than_were_their_longest_replies_reserved(
    tmp_path: Path,
) -> None:
    setup = Setup(tmp_path, quick=True, seed=0)
    figure = measure_at_once(setup, load_pair(*locate(None, None)), fresh_questions(4))
    assert figure.peer.values == (2.0,)
    assert figure.ours.values == (4.0,)
    assert figure.details["reply_tokens_max"] < 200


@pytest.mark.long
def test_it_measures_a_pair_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PREFIX_TOKENS", PREFIX)
    monkeypatch.setattr(at_once, "MAX_TOKENS", 20)
    setup = Setup(tmp_path, quick=True, seed=0)
    setup.runs = 1
    setup.model, setup.draft = (
        str(checkpoint(f"e2b-tiny{end}").path) for end in ("", "-assistant")
    )
    monkeypatch.setattr(memory, "fresh_questions", lambda count: ["hello"] * count)
    names = [figure.name for figure in measure(setup)]
    kinds = ("step", "alone", "bytes", "all_bytes")
    assert names == [*(f"memory/{what}/{n}" for n in (1, 4) for what in kinds), "memory/at_once"]

"""The model card says what was measured, and what was measured is what was promised."""

from __future__ import annotations

import json

import pytest

from sapwood.model.checkpoint.locate import DEMO
from sapwood.model.demo.train.card import card
from sapwood.model.demo.train.measure import MeasuredReply, acceptance

ENDS = frozenset({6})


def test_the_card_is_written_from_the_measurement() -> None:
    assert (DEMO / "README.md").read_text(encoding="utf-8") == card(DEMO)


@pytest.mark.parametrize("position", ["bonus", "last"])
def test_the_bundled_pair_drafts_as_well_as_promised(position: str) -> None:
    measured = json.loads((DEMO / "measured.json").read_text(encoding="utf-8"))
    deep, four = (measured["drafting"][f"greedy, {position}, depth {depth}"] for depth in (7, 4))
    assert deep["by_position"][0] >= 0.8 and four["tokens_per_round"] >= 3.5
    assert measured["transformers_difference"] < 1e-4


def test_the_bundled_pair_stays_small() -> None:
    sizes = {path: path.stat().st_size for path in DEMO.glob("*/model.safetensors")}
    assert len(sizes) == 2
    assert sizes[DEMO / "target" / "model.safetensors"] <= 10_000_000
    assert sizes[DEMO / "assistant" / "model.safetensors"] <= 3_000_000


def test_a_position_counts_where_the_drafts_before_it_were_accepted() -> None:
    reply = MeasuredReply((1,))
    for accepted in (3, 0, 1):
        reply.rounds.append((accepted, reply.take(range(10, 11 + accepted), ENDS)))
    found = acceptance([reply], 3)
    assert found == {"by_position": [0.667, 0.5, 1.0], "tokens_per_round": 2.33, "rounds": 3}


def test_what_comes_after_the_end_of_a_reply_counts_for_nothing() -> None:
    reply = MeasuredReply((1,))
    reply.rounds.append((3, reply.take([10, 6, 11, 12], ENDS)))
    assert reply.ended and reply.tokens == [10, 6]
    found = acceptance([reply], 3)
    assert found == {"by_position": [1.0, 1.0, 0.0], "tokens_per_round": 2.0, "rounds": 1}

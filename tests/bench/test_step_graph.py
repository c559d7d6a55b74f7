"""The weights by which bytes and arithmetic are reckoned are those that a step's graph multiplies.

- True shapes without memory, through the real runner, with two drafts and without.
- All of a matrix counts: a packed one is as many weights.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import NamedTuple

import pytest

from bench.families import FAMILIES
from tests.model.hollow import exported_events, hollow_pair, our_step, row


class Multiplied(NamedTuple):
    """Weights of a step's products, experts' apart: there all of them are an operand."""

    dense: int
    experts: int


def multiplied(events: list[dict[str, object]]) -> Multiplied:
    """What is no activation: of a product the larger operand. Attention's have four axes."""
    dense = experts = 0
    for event in events:
        shapes = [shape for _, shape, _ in event.get("inputs", ())]  # type: ignore[attr-defined]
        if event.get("name") == "Matmul" and len(shapes[1]) < 4:
            dense += max(prod(shapes[0]), prod(shapes[1]))
        elif event.get("name") == "GatherMM":
            experts += prod(shapes[1])
    return Multiplied(dense, experts)


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_are_those_of_the_graph(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    pair = hollow_pair(family, tmp_path)
    plain = multiplied(exported_events(lambda: our_step(pair, row(0))))
    drafted = multiplied(exported_events(lambda: our_step(pair, row(2))))
    assert plain.dense == family.dense_weights + family.router_weights
    all_experts = 0 if family.mixture is None else family.mixture.experts * family.expert_weights
    assert plain.experts == drafted.experts == all_experts
    # What the last draft hands back to the next one nobody asks for.
    unread = family.hidden * family.drafter.hidden
    assert drafted.dense - plain.dense == 2 * family.drafter_weights - unread

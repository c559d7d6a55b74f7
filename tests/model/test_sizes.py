"""What docs/sizes.md is made of is what the daemon reckons with; test_docs.py holds the page."""

from __future__ import annotations

import pytest

from bench.families import FAMILIES
from sapwood.cache.prefix.ledger import Ledger
from sapwood.scheduler.core.demand import Demand, slots_bytes
from sapwood.scheduler.limits import Limits
from tests.model.sizes import CONTEXT, size_of


@pytest.mark.parametrize("name", FAMILIES)
def test_its_weights_are_the_models(name: str) -> None:
    """Plain ones are counted as the daemon counts what it has loaded."""
    size = size_of(FAMILIES[name])
    assert size.target["bf16"] + size.drafter["bf16"] == size.facts.weights_bytes


def test_so_much_memory_holds_so_many_clients_and_no_more() -> None:
    size = size_of(FAMILIES["26B-A4B"])
    ledger = Ledger(
        size.budget_bytes("4-bit", "bf16", 8), size.target["4-bit"] + size.drafter["bf16"]
    )
    assert ledger.free == slots_bytes(size.facts, Limits(), [Demand(CONTEXT)] * 8)

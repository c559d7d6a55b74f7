"""How long a reply may be, at least has to be, and may think: what a request becomes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sapwood.daemon.engine.card import ModelCard
from sapwood.daemon.rpc.admission import Admission
from sapwood.scheduler.control_tokens import ControlTokens
from tests.daemon.conftest import prompt_of
from tests.daemon.fakes import CONTEXT, FACTS, SOMEBODY, ByteTokenizer
from tests.daemon.rpc.test_admission import GREEDY, LIMITS, admitted


@pytest.mark.anyio
async def test_an_unset_length_is_no_shorter_than_the_least() -> None:
    assert (await admitted(prompt_of(5, min_tokens=600))).max_tokens == 600
    assert (await admitted(prompt_of(5, min_tokens=5))).max_tokens == 512
    assert (await admitted(prompt_of(*[5] * (CONTEXT - 100), min_tokens=600))).max_tokens == 100
    assert (await admitted(prompt_of(5, min_tokens=7, max_tokens=7))).min_tokens == 7


@pytest.mark.anyio
async def test_a_budget_of_nothing_is_a_budget() -> None:
    facts = replace(FACTS, control_tokens=ControlTokens(None, 7, 8))
    card = ModelCard("m", "f", b"key", facts, GREEDY, ByteTokenizer())
    door = Admission(card, LIMITS)
    for budget in (None, 0, 2**32 - 1):
        request = prompt_of(5, thinking_tokens_max=budget)
        assert (await door.admit(request, 12.5, SOMEBODY)).thinking_tokens_max == budget
    door.close()

"""A reply's bounds on their way through the core: to the device, to its end, to its usage."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sapwood.scheduler.control_tokens import ControlTokens
from sapwood.scheduler.events import Request
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.model_facts import ModelFacts
from sapwood.scheduler.reply.reply import GeneratedReply
from sapwood.scheduler.result import Decoded
from sapwood.scheduler.sampling import Sampling
from tests.scheduler.fake_device import EOS, TOKEN_BYTES, toy_facts
from tests.scheduler.house import House, prompt

CHANNEL, CHANNEL_END = 2, 3
FACTS = replace(toy_facts(), control_tokens=ControlTokens(None, CHANNEL, CHANNEL_END))


@pytest.mark.parametrize("depth", [0, 1, 8, None])
@pytest.mark.parametrize("least", [1, 40, 90])
def test_nothing_ends_a_reply_below_its_least_length(depth: int | None, least: int) -> None:
    """The house compares with its naive reference, stop strings and parks included."""
    house, short = House(), 0
    for seed in range(6):
        ends = {"stop": ("b the", "\ufffd"), "stop_token_ids": frozenset({9, 10, 11})}
        free = house.submit(prompt(20, seed), 90, depth=depth, **ends)
        bound = house.submit(prompt(20, seed), 90, depth=depth, min_tokens=least, **ends)
        house.run()
        assert len(bound.tokens) >= least
        short += len(free.tokens) < least
        assert not {EOS, 9, 10, 11} & set(bound.tokens[:least])
    assert short or least == 1
    house.close()


def test_a_row_that_masks_may_lie_over_has_room_for_them() -> None:
    facts = replace(FACTS, masked_bytes_per_row=1000)
    options = {"min_tokens": 3}, {"thinking_tokens_max": 0}, {"constraint": "held"}
    rows = 1 + Limits().draft_depth_max
    for asked in options:
        assert _workspace(facts, **asked) - _workspace(facts) == rows * 1000


def _workspace(facts: ModelFacts, **options: object) -> int:
    house = House(facts=facts)
    house.submit(prompt(5), 8, **options)
    house.core.plan(house.now)
    return house.ledger.held("workspace")


def test_usage_counts_what_was_thought() -> None:
    request = Request(1, b"", (4,), 20, Sampling())
    reply = GeneratedReply(request, FACTS, TOKEN_BYTES)
    reply.push_first(CHANNEL)
    # The reply ends within the round: what stands behind its end is nobody's thought.
    reply.push_round(Decoded((5, 6, CHANNEL_END, 7, CHANNEL, 8, EOS, 9), 7))
    assert reply.parts.thinking_tokens == 3
    assert len(reply.tokens) == 8


def test_the_device_is_told_of_bounds_that_bind() -> None:
    house = House(facts=FACTS)
    for options in ({}, {"min_tokens": 2, "ignore_eos": True}, {"thinking_tokens_max": 0}):
        house.submit(prompt(5), 4, **options)
    house.step()
    free, long, curt = (admit.bounds for admit in house.plans[0].admits)
    assert free is None
    assert long is not None and (long.min_tokens, long.ending_ids) == (2, frozenset())
    assert curt is not None and curt.thinking_tokens_max == 0
    assert curt.control_tokens == FACTS.control_tokens

"""Rows that grow with what is written, and who is parked where memory does not keep up.

Every reply is held against the naive reference by the house, parked or not.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from sapwood.scheduler.core.sequence import SequenceState
from sapwood.scheduler.events import Drain
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.model_facts import ModelFacts
from sapwood.scheduler.outcomes import CancelReason, Outcome
from sapwood.scheduler.plan import StepPlan
from sapwood.scheduler.reasons import Reason
from sapwood.scheduler.sampling import Sampling
from tests.fakes import FULL_BYTES, SLIDING_BYTES
from tests.scheduler.fake_device import toy_facts
from tests.scheduler.house import House, Stream, failed, finished, prompt

LIMITS = Limits(
    slots_max=4,
    prefill_tokens_max=32,
    share_tokens_min=8,
    reply_tokens_guess=1,
    draft_depth_max=8,
)
FACTS = toy_facts(depth_max=LIMITS.draft_depth_max)
TOKEN = FULL_BYTES + SLIDING_BYTES
SAMPLERS: tuple[dict[str, Any], ...] = (
    {},
    {"sampling": Sampling(1.0, seeded=True, noise_key=3)},
    {"sampling": Sampling(presence_penalty=0.5)},
    {"top_logprobs": 2},
    {"stop": ("the b", "aba the a")},
    {"depth": 2},
    {"cache_bypass": True},
    {"store_reply": False},
)


# Steps that take so much that what they leave free between them has room for a capture.
LARGE_STEPS = replace(FACTS, workspace_bytes_per_token=20)


def room_for(tokens: int, spare: int = 0, facts: ModelFacts = FACTS) -> int:
    """A budget for one sequence that grows to so many tokens, and steps of two."""
    workspace = (32 + 2 * 9) * facts.workspace_bytes_per_token
    return facts.weights_bytes + facts.live_bytes(tokens) + workspace + spare


def two(house: House, max_tokens: int = 80, **options: Any) -> tuple[Stream, Stream]:
    """An older and a younger stream, which both outgrow what there is."""
    options = {"ignore_eos": True} | options
    older = house.submit(prompt(20), max_tokens, **options)
    return older, house.submit(prompt(20, 1), max_tokens, **options)


def until_parked(house: House) -> StepPlan:
    """Step up to the plan that parks somebody."""
    for plan in itertools.islice(iter(house.step, None), 200):
        if house.core.stats().requests_parked:
            return plan
    raise AssertionError("nobody was parked")


def test_a_slot_has_room_for_what_is_written_and_the_next_round() -> None:
    house = House(limits=LIMITS)
    house.submit(prompt(20), 100, ignore_eos=True)
    lives = []
    while house.step() is not None:
        lives.append(house.ledger.view().live)
    grown = [FACTS.live_bytes(tokens) for tokens in (32, 64, 128)]
    assert [live for live, _ in itertools.groupby(lives)] == [*grown, 0]
    assert [g.room for plan in house.plans for g in plan.grows] == [64, 120]
    house.close()


def test_more_live_at_once_than_could_if_all_replies_were_as_long_as_they_may_be() -> None:
    house = House(limits=LIMITS, budget_bytes=room_for(2048))
    for seed in range(4):
        house.submit(prompt(20, seed), 2000, stop_token_ids=frozenset(range(4, 30)))
    house.step()
    assert house.core.stats().requests_running == 4
    house.run()
    assert house.core.stats().parks == 0
    house.close()


def test_replies_that_turn_out_long_make_the_next_ones_wait() -> None:
    """Admitted is who has room beside what replies have lately taken."""
    house = House(limits=LIMITS, budget_bytes=room_for(128, 30 * TOKEN))
    for seed in range(40):
        house.submit(prompt(20, seed), 100, ignore_eos=True)
        house.run()
    for stream in two(house):
        assert stream.end is None
    house.run()
    assert house.core.stats().parks == 0
    house.close()


@pytest.mark.parametrize("options", SAMPLERS, ids=str)
@pytest.mark.parametrize("facts", [FACTS, LARGE_STEPS], ids=["read again", "captured"])
def test_the_youngest_is_parked_and_goes_on_as_if_nothing_had_been(
    facts: ModelFacts, options: dict[str, Any]
) -> None:
    house = House(limits=LIMITS, facts=facts, budget_bytes=room_for(128, 100, facts))
    older, younger = two(house, **options)
    until_parked(house)
    assert [s.state for s in house.core._roster.waiting] == [SequenceState.PARKED]
    assert [s.id for s in house.core._roster.waiting] == [younger.request.id]
    house.run()
    assert finished(older).usage.prompt_tokens == finished(younger).usage.prompt_tokens == 20
    stats = house.core.stats()
    assert stats.parks >= 1 and not stats.requests_parked
    assert stats.prompt_tokens == 40, "what was read again is not counted again"
    assert stats.generated_tokens == len(older.tokens) + len(younger.tokens)
    house.close()


def test_what_was_parked_is_restored_up_to_the_row_that_the_drafter_needs() -> None:
    room = room_for(128, 300, LARGE_STEPS)
    house = House(limits=LIMITS, facts=LARGE_STEPS, budget_bytes=room)
    two(house)
    plan = until_parked(house)
    (capture,) = plan.captures
    house.run()
    (resumed,) = [a for p in house.plans[plan.number :] for a in p.admits]
    assert resumed.target == capture.end - 1
    assert len(resumed.prompt) + len(resumed.reply) == capture.end + 1
    slices = [s for p in house.plans[plan.number :] for s in p.prefills]
    assert [(s.start, s.draws, s.index) for s in slices] == [
        (resumed.target, True, len(resumed.reply))
    ]
    house.close()


def test_where_the_tree_has_no_room_for_it_it_is_read_again() -> None:
    house = House(limits=LIMITS, budget_bytes=room_for(128))
    _, younger = two(house)
    plan = until_parked(house)
    assert not plan.captures
    house.run()
    assert finished(younger).usage.completion_tokens == 80
    house.close()


def test_l7_the_oldest_is_never_parked_and_nobody_more_often_than_it_may_be() -> None:
    limits = replace(LIMITS, parks_max=2)
    house = House(limits=limits, budget_bytes=room_for(256))
    streams = [house.submit(prompt(20, n), 200, ignore_eos=True) for n in range(4)]
    sequences = [house.core._roster.find(stream.request.id) for stream in streams]
    house.run()
    parks = [sequence.parks for sequence in sequences if sequence is not None]
    assert parks[0] == 0 and max(parks) <= 2 and len(parks) == 4
    assert house.core.stats().parks == sum(parks) > 2
    assert [finished(stream).usage.completion_tokens for stream in streams] == [200] * 4
    house.close()


def test_one_in_prefill_is_parked_too_and_tells_of_no_token_twice() -> None:
    limits = replace(LIMITS, prefill_tokens_max=8)
    house = House(limits=limits, budget_bytes=room_for(256))
    older = house.submit(prompt(10), 200, ignore_eos=True)
    while len(older.tokens) < 30:
        house.step()
    younger = house.submit(prompt(100, 1), 4)
    until_parked(house)
    assert not younger.tokens
    house.run()
    assert finished(younger) and finished(older)
    assert [p.processed for p in younger.progress] == sorted(
        {p.processed for p in younger.progress}
    )
    stats = house.core.stats()
    assert stats.prompt_tokens == 110
    recomputed = sum(stats.prefix_recomputed_tokens.values())
    assert stats.prefix_cached_tokens + recomputed == 110
    house.close()


def test_who_is_parked_may_be_cancelled_and_leaves_at_once() -> None:
    house = House(limits=LIMITS, budget_bytes=room_for(128))
    older, younger = two(house)
    until_parked(house)
    house.cancel(younger, CancelReason.CANCELLED)
    house.deliver()
    assert failed(younger).reason is Reason.CANCELLED
    house.run()
    assert finished(older)
    assert house.core.stats().requests[Outcome.CANCELLED] == 1
    house.close()


def test_who_is_parked_has_its_deadline_and_no_place_in_the_queue_to_lose() -> None:
    limits = replace(LIMITS, queue_s_max=0.05)
    house = House(limits=limits, budget_bytes=room_for(128))
    _, younger = two(house)
    until_parked(house)
    house.now += 1.0
    house.run()
    assert finished(younger)
    _, late = two(house, deadline=house.now + 2.0)
    until_parked(house)
    house.now += 3.0
    house.run()
    assert failed(late).reason is Reason.DEADLINE_EXCEEDED
    house.close()


def test_d1_a_drain_lets_who_is_parked_finish() -> None:
    house = House(limits=LIMITS, budget_bytes=room_for(128))
    streams = two(house)
    until_parked(house)
    house.handle(Drain())
    house.run()
    assert all(finished(stream) for stream in streams)
    house.close()


def test_a_new_request_does_not_take_the_place_of_one_that_is_parked() -> None:
    house = House(limits=LIMITS, budget_bytes=room_for(128))
    _, younger = two(house)
    until_parked(house)
    newest = house.submit(prompt(20, 2), 80, ignore_eos=True)
    house.run()
    ends = {s.request.id: max(s.deltas_by_step) for s in (younger, newest)}
    assert ends[younger.request.id] < ends[newest.request.id]
    house.close()


def test_alone_a_sequence_grows_where_what_the_tree_has_of_it_is_in_the_way() -> None:
    """L5: its own stored prompt gives way; nothing is recomputed for it."""
    house = House(limits=LIMITS, budget_bytes=room_for(128))
    stream = house.submit(prompt(12), 90, ignore_eos=True)
    house.step()
    assert house.tree.nodes
    house.run()
    assert finished(stream).usage.completion_tokens == 90
    assert not house.core.stats().parks
    assert house.tree.evictions["evicted"] > 0
    house.close()


def test_holes_are_closed_where_their_room_is_wanted() -> None:
    house = House(limits=LIMITS, budget_bytes=room_for(128, 2 * FACTS.live_bytes(32)))
    short = [house.submit(prompt(10, n), 6, ignore_eos=True) for n in range(3)]
    long = house.submit(prompt(20, 9), 100, ignore_eos=True)
    house.run()
    assert all(finished(stream) for stream in (*short, long))
    assert any(plan.pack for plan in house.plans)
    assert not house.core.stats().parks
    house.close()

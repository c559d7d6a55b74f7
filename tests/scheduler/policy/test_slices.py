"""Which prompts a step reads, and how far."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapwood.scheduler.policy.slice_cost import Reading, SliceCost
from sapwood.scheduler.policy.slices import SliceRoom, Unread, deal, least_tokens, prefill_budget

PLENTY_S = 1e9


def learned() -> SliceCost:
    """A slice of n tokens takes some 10 ms and n, with all that stands before it 2n."""
    cost = SliceCost()
    for n in range(200):
        start, tokens = 37 * n % 4000, 20 + 61 * n % 200
        work = Reading.of([(start, tokens)])
        cost.observe(work, 0.05, 0.05 + true_s(start, tokens), beside_rows=True)
    return cost


def true_s(start: int, tokens: int) -> float:
    return 0.0005 + 0.001 * tokens * (1.0 + (start + tokens / 2) / 8000)


COST = learned()


@pytest.mark.parametrize(("start", "tokens"), [(0, 40), (1000, 100), (3500, 60)])
def test_a_slice_is_dearer_the_further_on_it_stands(start: int, tokens: int) -> None:
    assert COST.seconds(start, tokens) == pytest.approx(true_s(start, tokens), rel=0.15)


@given(st.integers(0, 30_000), st.integers(1, 3000))
def test_the_longest_slice_that_fits_is_the_longest(start: int, tokens: int) -> None:
    found = COST.tokens(start, COST.seconds(start, tokens) + 1e-9)
    assert found == tokens
    assert COST.tokens(start, 0.0) == 0


def test_what_steps_copy_is_no_price_of_slices() -> None:
    """Three steps in four copy something too, for the time of a slice of 40."""
    cost, others = SliceCost(), random.Random(1)
    for n in range(200):
        start, tokens, copied = 37 * n % 4000, 20 + 61 * n % 200, bool(n % 4)
        seconds = (0.05 + true_s(start, tokens) + 0.04 * copied) * others.uniform(0.95, 1.1)
        work = Reading.of([(start, tokens)])
        cost.observe(work, 0.05, seconds, beside_rows=True, copied=copied)
    for start, tokens in ((0, 60), (2000, 100), (3500, 200)):
        assert cost.seconds(start, tokens) == pytest.approx(true_s(start, tokens), rel=0.2)


def test_no_token_is_free_whatever_was_measured() -> None:
    cost = SliceCost()
    for _ in range(100):
        cost.observe(Reading(1, 30, 900), 0.05, 0.05, beside_rows=True)
    assert cost.tokens(0, 0.03) < 10_000


@given(
    st.lists(st.tuples(st.integers(1, 2000), st.integers(0, 50)), max_size=40),
    st.integers(1, 600),
    st.integers(1, 6),
    st.sampled_from((0.0, 0.05, 0.3, PLENTY_S)),
)
def test_slices_fill_the_room_and_never_more(
    drawn: list[tuple[int, int]], tokens: int, slices: int, seconds: float
) -> None:
    """L2, L6: within all bounds, and the longest without a slice has one."""
    prompts = [Unread(100 * n, rest, step) for n, (rest, step) in enumerate(drawn)]
    shares = deal(prompts, SliceRoom(seconds, tokens, slices), COST)
    assert sum(shares) <= tokens
    assert all(0 <= share <= p.rest for share, p in zip(shares, prompts, strict=True))
    assert sum(share > 0 for share in shares) <= slices
    read = [(p.start, n) for p, n in zip(prompts, shares, strict=True) if n]
    assert COST.of(Reading.of(read)) <= seconds + 1e-9 or sum(shares) == 1
    if prompts:
        longest = min(range(len(prompts)), key=lambda i: prompts[i].served_step)
        assert shares[longest] > 0
        begun = [n < p.rest for n, p in zip(shares, prompts, strict=True) if n]
        assert sum(shares) == tokens or not any(begun) or seconds < PLENTY_S


def test_what_slices_may_take_is_told_in_time() -> None:
    """The same time is fewer tokens further on; whoever waited longest has a slice at any price."""
    near, far = (deal([Unread(n, 9000, 0)], SliceRoom(0.08, 512, 8), COST)[0] for n in (0, 8000))
    assert COST.seconds(8000, far) <= 0.08 and far < 0.7 * near
    assert deal([Unread(0, 9000, 0)], SliceRoom(0.001, 512, 8, 8), COST) == [8]


def test_short_prompts_do_not_wait_for_long_ones() -> None:
    """The long one, longest without a slice, keeps a slice's part."""
    rests, served = [10_000, 50, 20, 30], [0, 1, 1, 1]
    prompts = [Unread(0, *each) for each in zip(rests, served, strict=True)]
    assert deal(prompts, SliceRoom(PLENTY_S, 512, 4), COST) == [412, 50, 20, 30]
    prompts = [Unread(0, 10_000, 0), Unread(0, 300, 1), Unread(0, 200, 1)]
    assert deal(prompts, SliceRoom(PLENTY_S, 512, 4), COST) == [128, 184, 200]
    first, second = deal([Unread(0, 10_000, 0), Unread(0, 40, 1)], SliceRoom(0.08, 512, 8), COST)
    assert (first >= 16, second) == (True, 40)


def test_everybody_has_a_slice_within_as_many_steps_as_there_are_prefills() -> None:
    """L2: with one slice a step the turn goes round."""
    served = [0] * 5
    for step in range(1, 6):
        shares = deal([Unread(0, 100, last) for last in served], SliceRoom(PLENTY_S, 8, 1), COST)
        served[next(i for i, share in enumerate(shares) if share)] = step
    assert sorted(served) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("decode_tokens", "budget"), [(0, 512), (100, 412), (384, 128), (10_000, 128)]
)
def test_decode_goes_first_in_a_steps_tokens(decode_tokens: int, budget: int) -> None:
    """L3."""
    assert prefill_budget(decode_tokens, 512) == budget


def test_a_prefill_of_one_token_a_step_is_still_one() -> None:
    assert prefill_budget(100, 1) == least_tokens(1) == 1


def test_l4_a_steps_slices_are_parted_among_owners() -> None:
    """One long prompt and many short ones of another: half each; what one leaves is the other's."""
    long, short = Unread(0, 4000, 1, "a"), Unread(0, 60, 1, "b")
    half_s, room = COST.seconds(0, 200), SliceRoom(PLENTY_S, 400, 8)
    shares = deal([long, *[short] * 7], room, COST, {"b": 1.2 * half_s, "a": half_s})
    assert shares[0] == pytest.approx(200, abs=5) and sum(shares) == 400
    shares = deal([long, short], room, COST, {"a": half_s, "b": half_s})
    assert shares == [340, 60]
    shares = deal(
        [Unread(0, 50, 1, "a"), long._replace(owner="b")], room, COST, {"a": half_s, "b": half_s}
    )
    assert shares == [50, 350]


def test_l4_each_owner_has_a_slice_before_anybody_has_two() -> None:
    long, short = Unread(0, 100, 9, "a"), Unread(0, 20, 1, "b")
    shares = deal([long, *[short] * 7], SliceRoom(PLENTY_S, 400, 2), COST, {"a": 0.2, "b": 0.2})
    assert shares[0] == 100

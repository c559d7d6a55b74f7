"""How a step is shared among prefills."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapwood.scheduler.policy.shares import (
    max_min,
    prefill_budget,
    prefill_shares,
    retry_after_s,
)


@given(
    st.lists(st.tuples(st.integers(1, 2000), st.integers(0, 50)), max_size=40),
    st.integers(1, 600),
    st.integers(1, 6),
)
def test_shares_fill_the_budget_and_never_more(
    prefills: list[tuple[int, int]], budget: int, slices_max: int
) -> None:
    """L2, L6: within the budget, at most slices_max, and the longest without a slice has one."""
    rests, served = [rest for rest, _ in prefills], [step for _, step in prefills]
    shares = prefill_shares(rests, served, budget, slices_max)
    assert sum(shares) <= budget
    assert all(0 <= share <= rest for share, rest in zip(shares, rests, strict=True))
    assert sum(share > 0 for share in shares) <= slices_max
    if rests:
        assert shares[served.index(min(served))] > 0
        unused = budget - sum(shares)
        begun = [rest - share for share, rest in zip(shares, rests, strict=True) if share]
        assert not unused or not any(begun), "budget is left while a slice could be longer"


def test_short_prompts_do_not_wait_for_long_ones() -> None:
    """The long one, longest without a slice, keeps its reserved quarter."""
    assert prefill_shares([10_000, 50, 20, 30], [0, 1, 1, 1], 512, 4) == [412, 50, 20, 30]
    assert prefill_shares([10_000, 300, 200], [0, 1, 1], 512, 4) == [128, 184, 200]


def test_everybody_has_a_slice_within_as_many_steps_as_there_are_prefills() -> None:
    """L2: with one slice a step the turn goes round."""
    rests, served = [100] * 5, [0] * 5
    for step in range(1, 6):
        shares = prefill_shares(rests, served, 8, 1)
        served[next(i for i, share in enumerate(shares) if share)] = step
    assert sorted(served) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("decode_tokens", "budget"), [(0, 512), (100, 412), (384, 128), (10_000, 128)]
)
def test_decode_goes_first_and_prefill_keeps_a_quarter(decode_tokens: int, budget: int) -> None:
    """L3."""
    assert prefill_budget(decode_tokens, 512) == budget


def test_a_prefill_of_one_token_a_step_is_still_one() -> None:
    assert prefill_budget(100, 1) == 1


def test_retry_after_grows_with_the_queue_and_has_bounds() -> None:
    assert retry_after_s(0, 32, 0.0, 60.0) == 1.0
    assert retry_after_s(63, 32, 5.0, 60.0) == 10.0
    assert retry_after_s(10_000, 32, 5.0, 60.0) == 60.0


AMOUNTS = st.lists(
    st.tuples(st.floats(0, 50), st.sampled_from((0.5, 1.0, 2.0, 4.0))), min_size=1, max_size=12
)


@given(AMOUNTS, st.floats(0.1, 64))
def test_l4_shares_are_max_min(wanted: list[tuple[float, float]], capacity: float) -> None:
    """Nobody gets more than it asks for, all is given, and who is short has by weight the most."""
    demands, weights = [demand for demand, _ in wanted], [weight for _, weight in wanted]
    shares = max_min(demands, weights, capacity)
    assert sum(shares) == pytest.approx(min(capacity, sum(demands)))
    most = max(share / weight for share, weight in zip(shares, weights, strict=True))
    for share, demand, weight in zip(shares, demands, weights, strict=True):
        assert share <= demand
        if share < demand - 1e-6:
            assert share / weight == pytest.approx(most)


def test_l4_a_steps_slices_are_parted_among_owners() -> None:
    """One long prompt and many short ones of another: half each; what one leaves is the other's."""
    rests, served, owners = [4000, *[60] * 7], [1] * 8, ["a", *["b"] * 7]
    shares = prefill_shares(rests, served, 400, 8, owners, {"b": 200, "a": 200})
    assert (shares[0], sum(shares[1:])) == (200, 200)
    shares = prefill_shares([4000, 60], [1, 1], 400, 8, ["a", "b"], {"a": 340, "b": 60})
    assert shares == [340, 60]
    shares = prefill_shares([50, 4000], [1, 1], 400, 8, ["a", "b"], {"a": 200, "b": 200})
    assert shares == [50, 350]


def test_l4_each_owner_has_a_slice_before_anybody_has_two() -> None:
    rests, owners = [100, *[20] * 7], ["a", *["b"] * 7]
    shares = prefill_shares(rests, [9, *[1] * 7], 400, 2, owners, {"a": 200, "b": 200})
    assert shares[0] == 100

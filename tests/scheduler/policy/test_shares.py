"""How what is short is parted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapwood.scheduler.policy.shares import max_min, retry_after_s


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

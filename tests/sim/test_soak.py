"""The shell under 64 clients: see soak."""

from __future__ import annotations

import sys
from collections import Counter

import pytest

from tests.quick import few_quick
from tests.sim.soak import CLIENTS, Sample, Told, check_calm, kept_of_each, slope, soak

LONG_REQUESTS = 20_000


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("each", few_quick([100, 200], 100))
def test_a_calm_and_a_wild_round(each: int) -> None:
    """R1, R2, R4, M1: the metrics are the clients' sums, and no descriptor is left."""
    calm, wild = soak(2 * each, seed=1, each=each)
    assert calm.descriptors == wild.descriptors


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_20_000_requests() -> None:
    """M1, M3: drift 0 and descriptors constant at every rest; memory comes to rest too."""
    samples = soak(LONG_REQUESTS, seed=2)
    late = samples[len(samples) // 4 :]
    assert {each.descriptors for each in late} == {samples[0].descriptors}
    grown = late[-1].resident_bytes - late[0].resident_bytes
    assert grown < 1 << 20, [each.resident_bytes for each in samples]


def test_the_slope_is_bytes_an_hour() -> None:
    samples = [Sample(900.0 * n, 10**6 + 250 * n, 9, 5 * n) for n in range(8)]
    assert slope(samples) == pytest.approx(1000)
    assert kept_of_each(samples) == 50


def test_a_count_that_is_off_by_one_is_noticed() -> None:
    """The books of soak itself."""
    told = Told(asked=CLIENTS, ends=Counter(FINISH_REASON_LENGTH=CLIENTS), sums=Counter())
    counted = Counter({"requests_total": CLIENTS, "length": CLIENTS})
    check_calm(told, counted)
    for name in ("requests_total", "length", "generated_tokens_total"):
        with pytest.raises(AssertionError):
            check_calm(told, counted + Counter({name: 1}))

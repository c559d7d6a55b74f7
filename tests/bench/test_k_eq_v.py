"""Ways to hold K that is V rotated: all compute the same, and what did not would be no figure."""

from __future__ import annotations

import mlx.core as mx
import pytest

from bench import k_eq_v
from bench.families import FAMILIES
from bench.measure import BenchError
from sapwood.cache.attention_routes import CPU_KERNELS


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.k_eq_v])
def test_all_ways_are_the_same_attention(name: str) -> None:
    ways = k_eq_v.ways_of(CPU_KERNELS, FAMILIES[name], 3, 70)
    apart = ways["apart"]()
    assert apart.shape == (1, FAMILIES[name].heads, 3, 512)
    for call in ways.values():
        assert float(mx.abs(call() - apart).max()) < 1e-3


def test_what_is_off_by_more_than_rounding_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(k_eq_v._OFF_MAX, "float32", 1e-9)
    with pytest.raises(BenchError, match="is no other way to the same"):
        k_eq_v.ways_of(CPU_KERNELS, FAMILIES["12B"], 1, 20)

"""Powers of two and a CPU's softmax, against double precision and MLX's own."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from sapwood.cache.arrays.powers import EXPONENT_MAX, power_of_two, weighted, whole_and_rest

POWERS = np.linspace(-126, EXPONENT_MAX, 200_001, dtype=np.float32)


def powers(exponents: Any) -> Any:
    return np.array(power_of_two(*whole_and_rest(mx.array(exponents))))


def test_powers_are_within_two_units_of_the_last_place() -> None:
    found = powers(POWERS).astype(np.float64)
    assert np.abs(found / np.exp2(POWERS.astype(np.float64)) - 1).max() < 2**-22


def test_whole_powers_are_exact_and_the_least_is_nothing() -> None:
    whole = np.arange(-EXPONENT_MAX, EXPONENT_MAX + 1, dtype=np.float32)
    expected = np.exp2(whole.astype(np.float64)) * (whole > -EXPONENT_MAX)
    assert powers(whole).tolist() == expected.tolist()
    assert np.isnan(powers([mx.nan])).all()


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13, 31])
def test_bits_do_not_depend_on_the_place(count: int) -> None:
    """A vectorized loop has an end that is not; a company would be seen."""
    values = POWERS[:: POWERS.size // 97]
    alone = [powers(values[i : i + 1]).item() for i in range(97)]
    parts = [powers(values[i : i + count]) for i in range(0, 97, count)]
    assert np.concatenate(parts)[:97].tolist() == alone


def test_a_softmax_is_mlxs() -> None:
    scores = 9 * mx.random.normal((3, 2, 5, 77), key=mx.random.key(0))
    values = mx.random.normal((3, 2, 77, 8), key=mx.random.key(1))
    expected = np.array(mx.softmax(scores, axis=-1, precise=True) @ values)
    np.testing.assert_allclose(np.array(weighted(scores, values)), expected, rtol=0, atol=2e-6)


def test_what_is_invisible_weighs_nothing() -> None:
    """Behind any finite value, and a row that sees nothing stays finite."""
    least = mx.finfo(mx.float32).min
    scores = mx.array([[1.0, least, 2.0], [least, least, least]])
    values = mx.array([[1.0], [3e38], [1.0]])
    found = np.array(weighted(scores, values))
    assert found[0].item() == 1.0 and np.isfinite(found).all()

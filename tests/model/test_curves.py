"""The MLP's gate and the logits' cap: their values, ends and bits, and that each is one kernel."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

from sapwood.model.checkpoint.mlx_lm_modules import logit_softcap
from sapwood.model.curves import Gating, capped_on_cpu, gated, gated_on_cpu
from tests.model.hollow import nodes


def rows(*shape: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(1))


GATES = pytest.mark.parametrize("gating", [gated, gated_on_cpu])


@GATES
def test_the_gate_is_gelu_in_its_tanh_form(gating: Gating) -> None:
    gate, up = 6 * rows(64, 96), rows(64, 96)
    expected = np.array(nn.gelu_approx(gate) * up)
    np.testing.assert_allclose(np.array(gating(gate, up)), expected, rtol=0, atol=1e-5)


def test_the_gate_of_a_cpu_is_as_exact() -> None:
    gate = mx.array(np.linspace(-12, 12, 100_001, dtype=np.float32))[None]
    exact = np.array(gate).astype(np.float64)
    exact /= 1 + np.exp(-2 * np.sqrt(2 / np.pi) * (exact + 0.044715 * exact**3))
    worst = [
        float(np.abs(np.array(gating(gate, mx.ones_like(gate))) - exact).max())
        for gating in (gated_on_cpu, gated)
    ]
    assert worst[0] <= 3 * worst[1] < 1.2e-6


@GATES
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
def test_the_gate_has_ends(dtype: mx.Dtype, gating: Gating) -> None:
    """Half precision holds no product of such a gate and such an input, and gelu is nothing."""
    ends = mx.array([[-60000.0, -300.0, 0.0, 300.0, 60000.0]], dtype)
    up = mx.array([[60000.0, 1000.0, 1000.0, 1.0, 1.0]], dtype)
    found = np.array(gating(ends, up).astype(mx.float32))
    assert (found == np.array(mx.maximum(ends, 0).astype(mx.float32))).all()


@GATES
def test_the_gate_is_one_kernel(gating: Gating, tmp_path: Path) -> None:
    """mlx-lm's is two. MLX fuses a chain so deep and no deeper."""
    gate, up = rows(3, 8), rows(3, 8)
    mx.eval(gate, up)
    assert nodes([gating(gate, up)], tmp_path) == {"Compiled": 1}


def test_the_cap_of_a_cpu_is_one_kernel(tmp_path: Path) -> None:
    logits = rows(3, 8)
    mx.eval(logits)
    assert nodes([capped_on_cpu(30.0, logits)], tmp_path) == {"Compiled": 1}


@pytest.mark.parametrize("count", [1, 127, 128, 129, 300])
def test_a_row_has_the_same_bits_beside_any_number_of_others(count: int) -> None:
    """More than a function is compiled for are computed in parts."""
    gate, up = 4 * rows(300, 33), rows(300, 33)
    for curve in (gated_on_cpu, lambda a, _: capped_on_cpu(30.0, 20 * a)):
        alone = mx.concatenate([curve(gate[at : at + 1], up[at : at + 1]) for at in range(count)])
        assert mx.array_equal(curve(gate[:count], up[:count]), alone)


def test_no_gate_hides_what_is_not_finite() -> None:
    """A step with such a number must be noticed, not answered."""
    gate = mx.array([[mx.nan, 1.0, mx.inf, 1.0]])
    up = mx.array([[1.0, mx.nan, 1.0, mx.inf]])
    assert not np.isfinite(np.array(gated_on_cpu(gate, up))).any()


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_the_cap_of_a_cpu_is_mlx_lms(dtype: mx.Dtype) -> None:
    logits = mx.array(np.linspace(-2000, 2000, 40_001, dtype=np.float32)).astype(dtype)[None]
    ours, theirs = (
        np.array(cap(30.0, logits).astype(mx.float32)) for cap in (capped_on_cpu, logit_softcap)
    )
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    assert np.isnan(np.array(capped_on_cpu(30.0, mx.array([[mx.nan]])))).all()

"""What is computed of rows alone, against mlx-lm's own modules: no number but for rounding."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx_lm.models.gemma4_text import Attention

from sapwood.cache.attention_routes import CPU_KERNELS, Kernels
from sapwood.model.checkpoint.mlx_lm_modules import logit_softcap
from sapwood.model.dense import Heads, Rotation, capped_on_cpu, gated, gated_on_cpu
from tests.model.hollow import nodes
from tests.model.reference import FAMILIES, target

Gating = Callable[[mx.array, mx.array], mx.array]

METAL = Kernels("metal")
AT = mx.array([0, 3, 999, 100_000, 7], mx.int32)


def rows(*shape: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(1))


def attentions(name: str) -> list[Attention]:
    return [layer.self_attn for layer in target(name).model.layers]


GATES = pytest.mark.parametrize("gating", [gated, gated_on_cpu])


@GATES
def test_the_gate_is_gelu_in_its_tanh_form(gating: Gating) -> None:
    gate, up = 6 * rows(64, 96), rows(64, 96)
    expected = np.array(nn.gelu_approx(gate) * up)
    np.testing.assert_allclose(np.array(gating(gate, up)), expected, rtol=0, atol=1e-5)


def test_the_gate_of_a_cpu_is_as_exact() -> None:
    gate = mx.array(np.linspace(-12, 12, 100_001, dtype=np.float32))
    exact = np.array(gate).astype(np.float64)
    exact /= 1 + np.exp(-2 * np.sqrt(2 / np.pi) * (exact + 0.044715 * exact**3))
    worst = [
        float(np.abs(np.array(gating(gate, mx.ones_like(gate))) - exact).max())
        for gating in (gated_on_cpu, gated)
    ]
    assert worst[0] <= 2 * worst[1] < 1e-6


@GATES
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
def test_the_gate_has_ends(dtype: mx.Dtype, gating: Gating) -> None:
    """Half precision holds no product of such a gate and such an input, and gelu is nothing."""
    ends = mx.array([[-60000.0, -300.0, 0.0, 300.0, 60000.0]], dtype)
    up = mx.array([[60000.0, 1000.0, 1000.0, 1.0, 1.0]], dtype)
    found = np.array(gating(ends, up).astype(mx.float32))
    assert (found == np.array(mx.maximum(ends, 0).astype(mx.float32))).all()


def test_the_gate_is_one_kernel(tmp_path_factory: pytest.TempPathFactory) -> None:
    """mlx-lm's is two. MLX fuses a chain so deep and no deeper."""
    gate, up = rows(3, 8), rows(3, 8)
    mx.eval(gate, up)
    assert nodes([gated(gate, up)], tmp_path_factory.mktemp("graph")) == {"Compiled": 1}


def test_no_gate_hides_what_is_not_finite() -> None:
    """A step with such a number must be noticed, not answered."""
    gate = mx.array([mx.nan, 1.0, mx.inf, 1.0])
    up = mx.array([1.0, mx.nan, 1.0, mx.inf])
    assert not np.isfinite(np.array(gated_on_cpu(gate, up))).any()


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_the_cap_of_a_cpu_is_mlx_lms(dtype: mx.Dtype) -> None:
    logits = mx.array(np.linspace(-2000, 2000, 40_001, dtype=np.float32)).astype(dtype)
    ours, theirs = (
        np.array(cap(30.0, logits).astype(mx.float32)) for cap in (capped_on_cpu, logit_softcap)
    )
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    assert np.isnan(np.array(capped_on_cpu(30.0, mx.array([mx.nan])))).all()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kernels", [CPU_KERNELS, METAL], ids=["cpu", "metal"])
def test_rotation_is_the_modules_own(name: str, kernels: Kernels) -> None:
    for attention in attentions(name):
        heads = rows(AT.size, 4, attention.head_dim)
        expected = np.array(attention.rope(heads[:, :, None], offset=AT)[:, :, 0])
        found = np.array(Rotation(attention, kernels).at(AT)(heads))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_rotation_keeps_half_precision() -> None:
    attention = Attention(target("e2b-tiny").args, 0)
    attention.set_dtype(mx.bfloat16)
    heads = rows(AT.size, 4, attention.head_dim).astype(mx.bfloat16)
    for kernels in (CPU_KERNELS, METAL):
        assert Rotation(attention, kernels).at(AT)(heads).dtype == mx.bfloat16


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("queries", "keys"), [(True, True), (True, False), (False, True)])
def test_heads_are_those_of_the_modules(name: str, queries: bool, keys: bool) -> None:
    def split(projected: mx.array, heads: int) -> mx.array:
        return projected.reshape(AT.size, heads, -1)

    for own in attentions(name):
        if not own.has_kv and (keys or not queries):
            continue
        turn = Rotation(own, CPU_KERNELS).at(AT)
        normed = rows(AT.size, own.q_proj.weight.shape[-1])
        expected = [turn(own.q_norm(split(own.q_proj(normed), own.n_heads)))] if queries else []
        if keys:
            plain = split(own.k_proj(normed), own.n_kv_heads)
            apart = plain if own.use_k_eq_v else split(own.v_proj(normed), own.n_kv_heads)
            expected += [turn(own.k_norm(plain)), own.v_norm(apart)]
        asked, held = Heads.of(own, CPU_KERNELS, queries, keys)(normed, turn)
        found = [a for a in (asked, *(held or ())) if a is not None]
        assert len(found) == len(expected) == queries + 2 * keys
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(np.array(ours), np.array(theirs), rtol=0, atol=1e-5)

"""What is computed of rows alone, against mlx-lm's own modules: no number but for rounding."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.gemma4_text import Attention

from sapwood.cache.attention_routes import CPU_KERNELS, Kernels
from sapwood.model.dense import Heads, Rotation
from tests.model.reference import FAMILIES, target

METAL = Kernels("metal")
AT = mx.array([0, 3, 999, 100_000, 7], mx.int32)


def rows(*shape: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(1))


def attentions(name: str) -> list[Attention]:
    return [layer.self_attn for layer in target(name).model.layers]


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

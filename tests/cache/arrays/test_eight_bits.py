"""K/V in 8 bits: near to what it was, by a bound, and as many bytes as are said."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from sapwood.cache.arrays.eight_bits import GROUP, from_eight_bits, kv_share, to_eight_bits
from sapwood.scheduler.disk import kv_on_disk

SHAPE = (6, 4, 2 * GROUP)


def stack(dtype: mx.Dtype, seed: int = 0, spread: float = 1.0) -> mx.array:
    drawn = np.random.default_rng(seed).normal(0.0, spread, SHAPE)
    drawn[2] = 0.0
    drawn[3, 1, 5] = 300.0 * spread
    return mx.array(drawn).astype(dtype)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
@pytest.mark.parametrize("spread", [1e-2, 1.0, 50.0])
def test_a_number_is_off_by_half_a_scale_at_most(dtype: mx.Dtype, spread: float) -> None:
    """And by what scale and dtype round: the largest of a group is 127 scales."""
    blocks = [stack(dtype, seed, spread) for seed in range(3)]
    packed = [to_eight_bits(block) for block in blocks]
    assert {len(data) for data in packed} == {kv_on_disk(blocks[0].nbytes, kv_share(dtype.size))}
    back = from_eight_bits([memoryview(data) for data in packed], SHAPE, dtype)
    assert back.dtype == dtype
    whole = mx.concatenate(blocks, axis=1).astype(mx.float32)
    was, now = (np.asarray(a).reshape(6, 12, -1, GROUP) for a in (whole, back.astype(mx.float32)))
    largest = np.abs(was).max(axis=-1, keepdims=True)
    rounding = {mx.float32: 0.0, mx.bfloat16: 2**-8, mx.float16: 2**-11}[dtype]
    bound = largest * (0.5 / 127 + 2**-10 + rounding) + 1e-6
    assert (np.abs(was - now) <= bound).all()
    assert (now[2] == 0).all()
    assert not (was == now).all(), "it is not bit for bit, and nobody says so"


def test_what_is_no_number_harms_its_group_alone() -> None:
    held = stack(mx.float32)
    held[0, 0, 0] = float("inf")
    back = from_eight_bits([memoryview(to_eight_bits(held))], SHAPE, mx.float32)
    assert mx.isfinite(back[1:]).all().item() and mx.isfinite(back[0, 0, GROUP:]).all().item()

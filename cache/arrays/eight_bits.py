"""Stored K/V in 8 bits: what a disk tier may keep instead of the bits themselves.

- A vector of one head and token is cut into groups of GROUP numbers. A group is integers from -127
  to 127 and one scale in float16, its largest number ÷ 127. A number is off by half a scale at
  most.
- Bytes of a block: all integers, [sum of 2 x kv_heads, tokens, D], then all scales, with D ÷ GROUP.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

GROUP = 32
_LARGEST = 127.0
_SCALE_BYTES = 2


def kv_share(item_bytes: int) -> tuple[int, int]:
    """Bytes in 8 bits ÷ bytes as they were, as a fraction."""
    return GROUP + _SCALE_BYTES, GROUP * item_bytes


def to_eight_bits(stack: mx.array) -> bytes:
    """A stack of K/V as bytes; it stays whose it is."""
    rows, tokens, size = stack.shape
    groups = stack.astype(mx.float32).reshape(rows, tokens, size // GROUP, GROUP)
    scales = (mx.abs(groups).max(axis=-1) / _LARGEST).astype(mx.float16)
    worth = scales.astype(mx.float32)[..., None]
    steps = mx.where(worth > 0, groups / mx.where(worth > 0, worth, 1.0), 0.0)
    packed = mx.clip(mx.round(steps), -_LARGEST, _LARGEST).astype(mx.int8)
    mx.eval(packed, scales)
    return np.asarray(packed).tobytes() + np.asarray(scales).tobytes()


def from_eight_bits(
    blocks: Sequence[memoryview], shape: tuple[int, int, int], dtype: mx.Dtype
) -> mx.array:
    """Equal blocks of `shape` side by side, as K/V of a dtype."""
    rows, tokens, size = shape
    packed = np.empty((rows, len(blocks) * tokens, size // GROUP, GROUP), np.int8)
    scales = np.empty((rows, len(blocks) * tokens, size // GROUP, 1), np.float16)
    count = rows * tokens * size
    for index, block in enumerate(blocks):
        at = slice(index * tokens, (index + 1) * tokens)
        packed[:, at] = np.frombuffer(block[:count], np.int8).reshape(rows, tokens, -1, GROUP)
        scales[:, at] = np.frombuffer(block[count:], np.float16).reshape(rows, tokens, -1, 1)
    steps = mx.array(packed).astype(mx.float32) * mx.array(scales).astype(mx.float32)
    stack = steps.reshape(rows, -1, size).astype(dtype)
    mx.eval(stack)
    return stack

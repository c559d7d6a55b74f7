"""What a constraint leaves of a row's logits: -inf for every token that it does not allow. Lazy.

Masks are computed on the host, a bit for each token, and unpacked on the device.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import numpy.typing as npt


def packed_masks(words: npt.NDArray[np.int32]) -> mx.array:
    """uint8 [n, bytes] of int32 [n, words], the lowest bit of each the first of its tokens."""
    assert words.dtype == np.dtype("<i4"), words.dtype
    return mx.array(words.view(np.uint8))


def masked(logits: mx.array, masks: mx.array) -> mx.array:
    """Logits [n, V] under masks, uint8 [n, at least V / 8]."""
    width = logits.shape[1]
    bits = (masks[:, :, None] >> mx.arange(8, dtype=mx.uint8)) & 1
    allowed = mx.flatten(bits, 1)[:, :width].astype(mx.bool_)
    return mx.where(allowed, logits, -mx.inf)

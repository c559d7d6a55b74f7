"""Stored K/V as bytes and back: what goes to disk, bit for bit or in 8 bits, and comes from there.

- In 8 bits (eight_bits.py) what comes back is near to what went, and never the same bits.
- Bytes of one kind of layer are a Range's stack as it lies: [sum of 2 x kv_heads, tokens, D].
- Both ways it is the engine's thread that touches arrays; each call makes what it is asked for at
  once, so its caller keeps it small.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import mlx.core as mx
import numpy as np

from sapwood.cache.arrays.eight_bits import from_eight_bits, to_eight_bits
from sapwood.cache.arrays.live_caches import LayerShape
from sapwood.cache.arrays.ranges import Copies, EdgePayload, Range
from sapwood.cache.prefix.blocks import Storage
from sapwood.cache.prefix.catalogue import Kind

# As integers of their width: numpy has no bfloat16, and bits are all that counts.
_WORDS = {2: mx.uint16, 4: mx.uint32}


def stored_shape(layers: Sequence[LayerShape], tokens: int) -> tuple[int, int, int]:
    """Of a stack of all layers of one kind, at least one."""
    heads, head_dim = _heads(layers), layers[0].head_dim
    return 2 * sum(heads), tokens, head_dim


def copy_out(
    ranges: Iterable[Range | None], start: int, end: int, storage: Storage = "exact"
) -> bytes:
    """[start, end) of adjacent ranges that cover it, oldest first. They stay whose they are."""
    parts = [
        held.stack[:, max(start, held.start) - held.start : min(end, held.end) - held.start]
        for held in ranges
        if held is not None and held.start < end and held.end > start
    ]
    if storage == "8bit":
        return to_eight_bits(mx.concatenate(parts, axis=1))
    words = _WORDS[parts[0].dtype.size]
    joined = mx.contiguous(mx.concatenate([part.view(words) for part in parts], axis=1))
    mx.eval(joined)
    return np.asarray(joined).tobytes()


def paged_in(
    start: int,
    end: int,
    kv: Mapping[Kind, Sequence[memoryview]],
    layers: Mapping[Kind, Sequence[LayerShape]],
    dtype: mx.Dtype,
    page_bytes: int,
    copies: Copies,
    storage: Storage = "exact",
) -> EdgePayload:
    """The payload of tokens [start, end) out of equal blocks' bytes, kind by kind.

    Of sliding layers there are the last blocks alone, from none to all.
    """
    tokens = (end - start) // len(kv["full"])
    held: dict[Kind, Range | None] = {"full": None, "sliding": None}
    for kind, blocks in kv.items():
        if blocks:
            join = _joined if storage == "exact" else from_eight_bits
            stack = join(blocks, stored_shape(layers[kind], tokens), dtype)
            first = end - len(blocks) * tokens
            held[kind] = Range(first, end, stack, _heads(layers[kind]))
    return EdgePayload(start, end, held["full"], held["sliding"], page_bytes, copies)


def _joined(blocks: Sequence[memoryview], shape: tuple[int, int, int], dtype: mx.Dtype) -> mx.array:
    """Side by side on the host, so that the device holds it once."""
    (rows, tokens, size), words = shape, np.dtype(f"u{dtype.size}")
    whole = np.empty((rows, len(blocks) * tokens, size), words)
    for index, block in enumerate(blocks):
        at = slice(index * tokens, (index + 1) * tokens)
        whole[:, at] = np.frombuffer(block, words).reshape(shape)
    stack = mx.array(whole).view(dtype)
    mx.eval(stack)
    return stack


def _heads(layers: Sequence[LayerShape]) -> tuple[int, ...]:
    return tuple(layer.kv_heads for layer in layers)

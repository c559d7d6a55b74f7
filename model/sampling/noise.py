"""Counter-based noise: every random number of a request is a pure function of its address.

- An address is (the request's noise key, index of the token in its reply, stream, token id). There
  is no state: a draw does not know batch, depth or order, and can be repeated at will.
- The noise of a token id is the same over the whole vocabulary and over any subset of ids.
- The hash is Threefry-2x32 with 20 rounds (Salmon et al., "Parallel random numbers: as easy as 1,
  2, 3", SC 2011), the one inside `mx.random.split`: one kernel on every backend. Rejected: the
  same rounds as array operations, 120 of them a call, or ten seconds of C++ when compiled on a CPU.
- Addresses are chained like JAX's fold_in: key -> hash -> (index, stream) -> hash -> id -> hash, so
  that neighbouring seeds, indices and ids share nothing.
"""

from __future__ import annotations

from enum import IntEnum

import mlx.core as mx
import numpy as np

INDEX_MAX = 2**30 - 1


class NoiseStream(IntEnum):
    """What a number is for. At one index each stream decides at most one thing that is emitted."""

    TARGET = 0  # shared by target and drafter: seeded rows
    DRAFT = 1  # the proposals of unseeded rows
    ACCEPT = 2  # the coin of acceptance
    RESIDUAL = 3  # the token of an unseeded row after a rejection, or past a full run


def key_words(noise_key: int) -> tuple[int, int]:
    """A 64-bit noise key as two 32-bit words, low word first."""
    assert 0 <= noise_key < 2**64, f"a noise key has 64 bits, got {noise_key}"
    return noise_key & 0xFFFFFFFF, noise_key >> 32


def counters(indices: np.ndarray, streams: np.ndarray | NoiseStream) -> mx.array:
    """[R] uint32 from host values: the reply index and the stream in one word."""
    assert indices.size == 0 or 0 <= indices.min() <= indices.max() <= INDEX_MAX
    return mx.array((indices * len(NoiseStream) + streams).astype(np.uint32))


def gumbel(keys: mx.array, counters: mx.array, ids: mx.array) -> mx.array:
    """Standard Gumbel noise, float32 [R, n], for keys [R, 2], counters [R] and ids [R, n] or [n].

    argmax(log p + gumbel) over a row is a draw from p, exact into p's far tail (2**-64).
    """
    bits = _threefry(_fold(_addresses(keys, counters)[:, None], ids))
    # -log1p(-u), not -log(u): the largest noise then comes from the smallest u, where floats are
    # dense. With 24 even bits a vocabulary of 2**18 would meet the largest value every few draws.
    return -mx.log(-mx.log1p(-_unit(bits)))


def uniform(keys: mx.array, counters: mx.array) -> mx.array:
    """Uniform noise in the open interval (0, 1), float32 [R], for keys [R, 2] and counters [R]."""
    return _unit(_threefry(_addresses(keys, counters)))


def _addresses(keys: mx.array, counters: mx.array) -> mx.array:
    """[R, 2]: one hashed key for each row, index and stream."""
    return _threefry(_fold(_threefry(keys), counters))


def _fold(keys: mx.array, words: mx.array) -> mx.array:
    """Mix words [...] into the first halves of keys [..., 2]."""
    return keys ^ (words.astype(mx.uint32)[..., None] * mx.array([1, 0], mx.uint32))


def _threefry(keys: mx.array) -> mx.array:
    """Threefry-2x32-20 of the counter (0, 1) under each key: uint32 [..., 2] to [..., 2]."""
    return _split(keys.reshape(-1, 2)).reshape(keys.shape)


_split = mx.vmap(lambda key: mx.random.split(key, 1))


def _unit(bits: mx.array) -> mx.array:
    """64 random bits [..., 2] to float32 [...] in (0, 1), full precision down to 2**-64."""
    scale = mx.array([2.0**-32, 2.0**-64], mx.float32)
    # Clipped at both ends: 0 would give log(0), and 2**32 - 1 rounds up to 1.
    return mx.clip((bits.astype(mx.float32) * scale).sum(axis=-1), 2.0**-65, 1 - 2.0**-24)

"""Published vectors, one value per address, and the shape of the distributions."""

from __future__ import annotations

import threading

import mlx.core as mx
import numpy as np
import pytest
from scipy import stats

from sapwood.model.sampling import noise
from sapwood.model.sampling.noise import NoiseStream

WORD = 0xFFFFFFFF
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry_2x32_20(key: tuple[int, int], counter: tuple[int, int]) -> tuple[int, int]:
    """Threefry-2x32-20 as the paper writes it, in Python integers."""
    words = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    a, b = (counter[0] + words[0]) & WORD, (counter[1] + words[1]) & WORD
    for group in range(5):
        for by in ROTATIONS[group % 2]:
            a = (a + b) & WORD
            b = ((b << by | b >> (32 - by)) & WORD) ^ a
        a = (a + words[(group + 1) % 3]) & WORD
        b = (b + words[(group + 2) % 3] + group + 1) & WORD
    return a, b


def address_bits(noise_key: int, index: int, stream: NoiseStream, token: int) -> tuple[int, int]:
    """The 64 bits at one address, by the definition in the module's docstring."""
    low, high = threefry_2x32_20((noise_key & WORD, noise_key >> 32), (0, 1))
    low, high = threefry_2x32_20((low ^ (index * 4 + stream), high), (0, 1))
    return threefry_2x32_20((low ^ token, high), (0, 1))


def keys_of(*noise_keys: int) -> mx.array:
    return mx.array([noise.key_words(k) for k in noise_keys], mx.uint32)


def counter_of(*indices: int, stream: NoiseStream = NoiseStream.TARGET) -> mx.array:
    return noise.counters(np.array(indices), stream)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((WORD, WORD), (WORD, WORD), (0x1CB996FC, 0xBB002BE7)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_reference_gives_the_published_vectors(
    counter: tuple[int, int], key: tuple[int, int], expected: tuple[int, int]
) -> None:
    """Known answers of Random123 1.09 for threefry2x32, 20 rounds."""
    assert expected == threefry_2x32_20(key, counter)


def test_mlx_hash_is_threefry_2x32_20() -> None:
    """What the module takes from mx.random.split is the published function, whatever the key."""
    keys = np.random.default_rng(1).integers(0, 2**32, (500, 2), dtype=np.uint32)
    keys[:2] = [[0, 0], [WORD, WORD]]
    expected = [list(threefry_2x32_20((a, b), (0, 1))) for a, b in keys.tolist()]
    assert expected == noise._threefry(mx.array(keys)).tolist()


def test_numbers_are_those_of_their_address() -> None:
    cases = [(0, 0, 0), (2**64 - 1, 262_143, 262_143), (0x1234_5678_9ABC_DEF0, 17, 106)]
    keys = keys_of(*(key for key, _, _ in cases))
    ids = mx.array([[token] for *_, token in cases], mx.int32)
    for stream in NoiseStream:
        counters = counter_of(*(index for _, index, _ in cases), stream=stream)
        bits = np.array([address_bits(k, i, stream, t) for k, i, t in cases], np.float64)
        unit = bits @ [2.0**-32, 2.0**-64]
        drawn = np.array(noise.gumbel(keys, counters, ids))[:, 0]
        np.testing.assert_allclose(drawn, -np.log(-np.log1p(-unit)), rtol=1e-5)


def test_subset_of_ids_sees_the_noise_of_the_whole_vocabulary() -> None:
    """S5: a row reduced to its candidates draws with the same noise as over all ids."""
    keys, counters = keys_of(3, 2**40 + 3), counter_of(5, 9)
    whole = np.array(noise.gumbel(keys, counters, mx.arange(1000)))
    ids = np.random.default_rng(2).integers(0, 1000, (2, 70)).astype(np.int32)
    part = np.array(noise.gumbel(keys, counters, mx.array(ids)))
    assert (np.take_along_axis(whole, ids, axis=1) == part).all()


def test_a_row_does_not_see_its_company() -> None:
    keys, counters = keys_of(*range(40)), counter_of(*range(40))
    together = np.array(noise.gumbel(keys, counters, mx.arange(100)))
    alone = np.array(noise.gumbel(keys[7:8], counters[7:8], mx.arange(100)))
    assert (together[7] == alone[0]).all()


def test_other_threads_draw_the_same() -> None:
    """The engine's thread is not the one that imported the module."""
    keys, counters = keys_of(11), counter_of(4)
    here = noise.gumbel(keys, counters, mx.arange(64)).tolist()
    there: list[object] = []

    def draw() -> None:
        there.append(noise.gumbel(keys_of(11), counter_of(4), mx.arange(64)).tolist())

    thread = threading.Thread(target=draw)
    thread.start()
    thread.join()
    assert [here] == there


def test_extreme_bits_stay_finite() -> None:
    bits = mx.array([[0, 0], [0, 1], [WORD, WORD], [WORD, 0]], mx.uint32)
    unit = noise._unit(bits)
    assert ((unit > 0) & (unit < 1)).all().item()
    assert np.isfinite(np.array(-mx.log(-mx.log1p(-unit)))).all()


def test_low_word_refines_the_smallest_numbers() -> None:
    """The largest noise of a large vocabulary comes from here."""
    unit = noise._unit(mx.array([[0, 2**31], [1, 2**31], [2**31, 0]], mx.uint32))
    assert unit.tolist() == [2.0**-33, 1.5 * 2.0**-32, 0.5]


def test_tail_is_not_quantised() -> None:
    """A vocabulary of 2**18 meets the top 2**-18 of the noise at every draw: keep it smooth."""
    drawn = np.array(noise.gumbel(keys_of(*range(16)), counter_of(*range(16)), mx.arange(2**18)))
    top = np.sort(drawn.ravel())[-256:]
    assert len(np.unique(top)) > 250
    assert top[-1] > np.log(drawn.size) - 3


@pytest.mark.parametrize("stream", list(NoiseStream))
def test_uniform_is_uniform(stream: NoiseStream) -> None:
    """Neighbouring seeds and indices, as clients choose them."""
    seeds, indices = np.divmod(np.arange(100_000), 100)
    keys = mx.array(np.stack([seeds, np.zeros_like(seeds)], axis=1).astype(np.uint32))
    drawn = np.array(noise.uniform(keys, noise.counters(indices, stream)))
    assert stats.kstest(drawn, "uniform").pvalue > 1e-4
    pairs = np.histogram2d(drawn[:-1], drawn[1:], bins=16, range=((0, 1), (0, 1)))[0]
    assert stats.chisquare(pairs.ravel()).pvalue > 1e-4


def test_gumbel_is_gumbel() -> None:
    drawn = np.array(noise.gumbel(keys_of(*range(200)), counter_of(*range(200)), mx.arange(500)))
    assert stats.kstest(drawn.ravel(), "gumbel_r").pvalue > 1e-4


def test_streams_indices_and_keys_are_unrelated() -> None:
    """No two addresses that differ in one part share anything: correlations are those of chance."""
    ids = mx.arange(20_000)
    rows = [(1, 0, s) for s in NoiseStream] + [(1, i, NoiseStream.TARGET) for i in (1, 2, 3)]
    rows += [(k, 0, NoiseStream.TARGET) for k in (0, 2, 3, 2**32, 2**32 + 1)]
    drawn = [
        np.array(noise.uniform(keys_of(k), counter_of(i, stream=s))).tolist()
        + np.array(noise.gumbel(keys_of(k), counter_of(i, stream=s), ids))[0].tolist()
        for k, i, s in rows
    ]
    related = np.abs(np.corrcoef(np.array(drawn)) - np.eye(len(rows)))
    assert related.max() < 5 / np.sqrt(20_000)


def test_key_of_more_than_64_bits_is_our_mistake() -> None:
    with pytest.raises(AssertionError):
        noise.key_words(2**64)

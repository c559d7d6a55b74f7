"""Copies of stored K/V: made together, within the bytes they are given, and none for nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import mlx.core as mx
import pytest

from sapwood.cache.arrays.ranges import Copies, EdgePayload, Range
from sapwood.cache.prefix.snapshot import Payload
from tests.cache.arrays.test_memory import peak_bytes
from tests.cache.arrays.test_waits import waits  # noqa: F401 (a fixture)

TOKENS, DIM, EDGES = 1024, 64, 8
TOKEN_BYTES = 2 * DIM * 4  # keys and values of one sliding layer
KEPT = TOKENS // 2
KEPT_BYTES = KEPT * TOKEN_BYTES
SCALARS_BYTES = 64 << 10  # tables of the gathers, two of 2 KiB for each edge, and what is small


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    """A buffer that MLX kept may be larger than what it is handed out for."""
    limit = mx.set_cache_limit(0)
    mx.clear_cache()
    yield
    mx.set_cache_limit(limit)


@pytest.fixture
def copies() -> Copies:
    return Copies()


@pytest.fixture
def edges(copies: Copies) -> list[EdgePayload]:
    """Of one path, each with its own content, evaluated."""
    made = []
    for i in range(EDGES):
        held = Range(i * TOKENS, (i + 1) * TOKENS, mx.full((2, TOKENS, DIM), i), (1,))
        mx.eval(held.stack)
        made.append(EdgePayload(held.start, held.end, None, held, copies=copies))
    mx.synchronize()
    return made


def content(payload: Payload) -> list[float]:
    assert isinstance(payload, EdgePayload) and payload.sliding is not None
    return [float(x) for x in payload.sliding.stack[0, :, 0]]


def thin_all(edges: Sequence[EdgePayload]) -> list[Payload]:
    return [edge.thin(edge.end - KEPT) for edge in edges]


@pytest.mark.parametrize(("together", "expected"), [(0, 8), (1, 8), (3, 3), (8, 1), (100, 1)])
def test_m1_as_many_are_made_at_once_as_there_is_room_for(
    copies: Copies,
    edges: list[EdgePayload],
    waits: list[int],  # noqa: F811
    together: int,
    expected: int,
) -> None:
    """What is held meanwhile is the sources and one group; afterwards what was kept."""
    before = mx.get_active_memory()
    thinned = thin_all(edges)
    assert waits == [] and mx.get_active_memory() - before < SCALARS_BYTES
    taken = peak_bytes(lambda: copies.make(together * KEPT_BYTES))
    assert len(waits) == expected
    assert taken <= max(1, min(together, EDGES)) * KEPT_BYTES + SCALARS_BYTES
    freed = EDGES * (TOKENS - KEPT) * TOKEN_BYTES
    assert before - mx.get_active_memory() >= freed - SCALARS_BYTES
    assert [content(each) for each in thinned] == [[float(i)] * KEPT for i in range(EDGES)]
    copies.make(1 << 30)
    assert len(waits) == expected, "nothing is left to make"


def test_joins_of_joins_are_one_copy(
    copies: Copies,
    edges: list[EdgePayload],
    waits: list[int],  # noqa: F811
) -> None:
    """Merged pairwise, as the tree does: the halves are never made."""
    first, second, third, fourth = edges[:4]
    merged = first.merge(second).merge(third.merge(fourth))
    other = edges[4].merge(edges[5])
    whole_bytes = 4 * TOKENS * TOKEN_BYTES
    taken = peak_bytes(lambda: copies.make(whole_bytes))
    assert len(waits) == 2, "the other one is beyond the bytes"
    assert taken <= whole_bytes + SCALARS_BYTES
    assert content(merged) == [float(i) for i in range(4) for _ in range(TOKENS)]
    assert content(other) == [float(i) for i in (4, 5) for _ in range(TOKENS)]


def test_a_made_join_holds_nothing_of_what_it_was_made_from(
    copies: Copies, edges: list[EdgePayload]
) -> None:
    before = mx.get_active_memory()
    merged = edges[0].merge(edges[1])
    copies.make(1 << 30)
    assert abs(mx.get_active_memory() - before) <= SCALARS_BYTES
    again = merged.merge(edges[2])
    copies.make(1 << 30)
    assert content(again) == [float(i) for i in range(3) for _ in range(TOKENS)]
    again.close()
    assert before - mx.get_active_memory() >= 3 * TOKENS * TOKEN_BYTES - SCALARS_BYTES


def test_a_copy_of_copies_counts_what_it_is_made_from(
    copies: Copies,
    edges: list[EdgePayload],
    waits: list[int],  # noqa: F811
) -> None:
    """What is cut and joined at once: the parts and their whole exist at once."""
    thinned = [edges[0], edges[1].copy(TOKENS, TOKENS + KEPT, TOKENS)]
    merged = thinned[0].merge(thinned[1])
    whole_bytes, cut_bytes = (TOKENS + KEPT) * TOKEN_BYTES, KEPT * TOKEN_BYTES
    taken = peak_bytes(lambda: copies.make(whole_bytes))
    assert whole_bytes < taken <= whole_bytes + cut_bytes + SCALARS_BYTES
    assert content(merged) == [0.0] * TOKENS + [1.0] * KEPT


def test_what_is_dropped_before_it_is_made_is_never_made(
    copies: Copies,
    edges: list[EdgePayload],
    waits: list[int],  # noqa: F811
) -> None:
    """An eviction thins a leaf and then drops it."""
    before = mx.get_active_memory()
    for each in thin_all(edges):
        each.close()
    assert peak_bytes(lambda: copies.make(0)) == 0
    assert waits == []
    assert before - mx.get_active_memory() >= EDGES * TOKENS * TOKEN_BYTES - SCALARS_BYTES

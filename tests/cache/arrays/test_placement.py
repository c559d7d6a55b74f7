"""Pool rows: distinct, dense after a pack, and gone with their last owner."""

from __future__ import annotations

from collections import Counter

import mlx.core as mx
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sapwood.cache.arrays.batch import Batch, Span
from sapwood.cache.arrays.placement import Move, Place, Placement
from sapwood.cache.arrays.pools import Pools, Writes
from sapwood.cache.geometry import row_tokens


def test_capacity_classes_double() -> None:
    tokens = (0, 160, 161, 320, 321, 513, 5000)
    assert [row_tokens(t) for t in tokens] == [160, 160, 320, 320, 512, 1024, 8192]


def test_a_freed_row_is_taken_again_before_the_pool_grows() -> None:
    placement = Placement(lambda _: 8)
    placement.reserve((slot, 1) for slot in range(3))
    placement.free(1)
    assert placement.reserve([(9, 1)]) == [Move(None, Place(8, 1))]
    assert placement.rows(8) == 3


def test_a_slot_moves_up_when_it_outgrows_its_class_and_never_down() -> None:
    placement = Placement(lambda tokens: row_tokens(tokens, 8))
    assert placement.reserve([(0, 3)]) == [Move(None, Place(8, 0))]
    assert placement.reserve([(0, 8)]) == []
    assert placement.reserve([(0, 9)]) == [Move(Place(8, 0), Place(16, 0))]
    assert placement.reserve([(0, 2)]) == []
    assert placement.rows(8) == 0


def test_a_class_that_is_left_and_taken_at_once_begins_anew() -> None:
    placement = Placement(lambda tokens: row_tokens(tokens, 8))
    placement.reserve([(0, 3), (1, 3)])
    placement.free(0)
    moves = placement.reserve([(1, 9), (2, 3)])
    assert moves == [Move(Place(8, 1), Place(16, 0)), Move(None, Place(8, 0))]
    assert placement.rows(8) == 1


def test_pools_of_a_class_that_begins_anew_have_no_row_too_many() -> None:
    placement = Placement(lambda tokens: row_tokens(tokens, 8))
    pools = Pools(1, 2, placement, mx.float32)
    pools.follow(placement.reserve([(0, 3), (1, 3)]))
    pools.write(1, 0, mx.ones((1, 3, 2)), mx.ones((1, 3, 2)))
    placement.free(0)
    pools.follow(placement.reserve([(1, 9), (2, 3)]))
    assert {c: pool[0].shape[0] for c, pool in pools.by_capacity.items()} == {8: 1, 16: 1}
    assert np.array(pools.read(1, 0, 3)[0]).tolist() == [[[1.0, 1.0]] * 3]


def test_pack_closes_all_holes() -> None:
    placement = Placement(lambda tokens: row_tokens(tokens, 8))
    placement.reserve([*((slot, 1) for slot in range(4)), (5, 9)])
    assert placement.pack() == {}
    placement.free(0)
    placement.free(2)
    assert placement.rows(8) == 4
    assert placement.pack() == {8: [1, 3]}
    assert placement.places == {1: Place(8, 0), 3: Place(8, 1), 5: Place(16, 0)}
    assert placement.rows(8) == 2


def test_no_entry_of_a_ring_is_written_twice_in_one_step() -> None:
    """A scatter with two values for one place has no order on a GPU."""
    placement = Placement(lambda _: 8)
    placement.reserve([(0, 1), (1, 1)])
    writes = Writes.of(Batch([Span(1, 5, 3)], [Span(0, 3, 21)]), placement, 2)[8]
    places = list(
        zip(
            *(np.array(a).ravel().tolist() for a in (writes.rows, writes.heads, writes.entries)),
            strict=True,
        )
    )
    assert len(set(places)) == len(places) == (3 + 8) * 2
    assert writes.packed is not None
    assert np.array(writes.packed).tolist() == [0, 1, 2, *range(16, 24)]


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 40))))
def test_rows_are_distinct_and_no_more_than_once_were_taken(calls: list[tuple[int, int]]) -> None:
    """tokens 0 frees the slot, of which the seventh packs."""
    most: dict[int, int] = {}
    placement = Placement(lambda tokens: row_tokens(tokens, 8))
    for slot, tokens in calls:
        placement.reserve([(slot, tokens)]) if tokens else placement.free(slot)
        if slot == 7:
            placement.pack()
        places = list(placement.places.values())
        assert len(set(places)) == len(places)
        owners = Counter(place.capacity for place in places)
        packed = slot == 7
        most = {c: n if packed else max(n, most.get(c, 0)) for c, n in owners.items()}
        assert all(placement.rows(capacity) == most[capacity] for capacity in owners)
        assert not any(placement.rows(c) for c in (8, 16, 32, 64) if c not in owners)


def test_a_class_that_is_full_begins_another_a_token_longer() -> None:
    """As many rows as one array may have; a row that is free is taken before a class is begun."""
    placement = Placement(lambda tokens: 8 if tokens <= 8 else 16, tokens_max=20)
    placement.reserve([(slot, 5) for slot in range(5)])
    assert [placement.places[slot] for slot in range(5)] == [
        Place(8, 0), Place(8, 1), Place(9, 0), Place(9, 1), Place(10, 0),
    ]  # fmt: skip
    placement.free(1)
    placement.reserve([(7, 3)])
    assert placement.places[7] == Place(8, 1)
    # A class has one row at least, however long that is.
    placement.reserve([(3, 9), (2, 16), (4, 16)])
    places = placement.places
    assert [places[slot] for slot in (3, 2, 4)] == [Place(16, 0), Place(17, 0), Place(18, 0)]

"""Sizes of live K/V, in plain numbers."""

from __future__ import annotations

import pytest

from sapwood.cache.geometry import ROW_TOKENS_MIN, moved_bytes, ring_tokens, row_tokens, tail_tokens


def test_rows_double_until_they_hold() -> None:
    assert ROW_TOKENS_MIN == 160
    tokens = [0, 160, 161, 320, 321, 512, 513, 131_072]
    assert [row_tokens(count) for count in tokens] == [160, 160, 320, 320, 512, 512, 1024, 131_072]
    assert row_tokens(17, tokens_min=8) == 32


def test_a_ring_has_room_for_what_a_draft_sees_and_a_round_writes() -> None:
    """Positions P - 1 - W to P + k: W + 1 committed ones, and k + 1 rows from P on."""
    window, depth = 16, 7
    assert ring_tokens(window, depth + 1) == (window + 1) + (depth + 1)


def test_a_query_sees_the_window_with_itself() -> None:
    assert [tail_tokens(window) for window in (0, 1, 2, 16)] == [0, 0, 1, 15]


@pytest.mark.parametrize(
    ("layers", "moved"), [(0, 0), (1, 1200), (3, 400), (4, 300), (5, 480), (10, 360), (48, 300)]
)
def test_pools_grow_in_four_groups_of_layers(layers: int, moved: int) -> None:
    assert moved_bytes(1200, layers) == moved

"""How much of a prefix is held by reference. Edges are (end, live sequences that hold it)."""

from __future__ import annotations

import pytest

from sapwood.scheduler.policy.reference import STRETCHES_MAX, long_tokens, read_once_tokens


@pytest.mark.parametrize(
    ("edges", "base"),
    [
        ([], 0),
        ([(999, 2)], 0),
        ([(1000, 2)], 1000),
        ([(99999, 1)], 0),  # nobody else reads it
        ([(501, 3), (600, 1)], 501),
        ([(550, 9), (560, 2), (600, 1)], 550),  # ten tokens are not worth a call
        ([(550, 9), (560, 9), (2000, 9)], 2000),  # but what lies behind them is
        ([(30, 9), (600, 9)], 600),
        ([(30, 9), (100, 9)], 0),
    ],
)
def test_what_others_would_read_too_is_referred_to(edges: list[tuple[int, int]], base: int) -> None:
    assert read_once_tokens(edges, 1000) == base


@pytest.mark.parametrize(
    ("edges", "base"),
    [
        ([], 0),
        ([(99, 1)], 0),
        ([(100, 1)], 100),
        ([(50, 1), (200, 1), (250, 1)], 200),
        ([(150, 3), (250, 1)], 250),
    ],
)
def test_where_room_is_short_edges_that_are_long_on_average(
    edges: list[tuple[int, int]], base: int
) -> None:
    assert long_tokens(edges, 100) == base


def test_the_calls_of_one_sequence_are_bounded() -> None:
    edges = [(100 * (n + 1), 30) for n in range(STRETCHES_MAX + 3)]
    assert read_once_tokens(edges, 64) == long_tokens(edges, 64) == 100 * STRETCHES_MAX

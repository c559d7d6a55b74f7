"""The tree as blocks, against what a router would know after every change."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sapwood.cache.prefix.describe import EdgeView
from sapwood.daemon.gateway.blocks import BLOCK, BlockIndex, TokenBlock, restorable_edges, runs
from tests.cache.prefix.garden import ROOT, Garden

Path = tuple[int, ...]
SIZE = 3
TEXTS = st.text("ab", min_size=1, max_size=20)


class Router:
    """What one makes of the changes it is told: the paths whose last block it knows."""

    def __init__(self) -> None:
        self.paths: dict[int, Path] = {}

    def learn(self, index: BlockIndex, edges: list[EdgeView]) -> None:
        change = index.update(edges)
        for hash in change.removed:
            del self.paths[hash]
        for block in change.stored:
            assert block.hash not in self.paths, "told twice"
            above = () if block.parent is None else self.paths[block.parent]
            self.paths[block.hash] = above + tuple(block.tokens)


def restorable_paths(garden: Garden, window: int) -> set[Path]:
    """From the tree's own words: every prefix of a path at whose end something can go on."""
    full: dict[int | None, Path] = {}
    sliding: set[Path] = set()
    ends = []
    for view in garden.tree.describe(tokens=True):
        assert view.tokens is not None
        full[view.id] = path = full.get(view.parent, ()) + view.tokens
        sliding |= {path[:end] for end in range(view.sliding_start + 1, view.end + 1)}
        ends.append(path)
    whole = [
        path
        for path in ends
        if all(
            path[:end] in sliding for end in range(max(0, len(path) - window) + 1, len(path) + 1)
        )
    ]
    return {path[:end] for path in whole for end in range(SIZE, len(path) + 1, SIZE)}


@settings(max_examples=150)
@given(st.data(), st.integers(1, 5), st.sampled_from([1, 100]))
def test_a_router_knows_what_can_be_restored_and_nothing_else(
    data: st.DataObject, window: int, merge_tokens_max: int
) -> None:
    garden = Garden(window=window, merge_tokens_max=merge_tokens_max)
    index, router = BlockIndex(window, SIZE), Router()
    for _ in range(data.draw(st.integers(1, 8))):
        if data.draw(st.booleans()):
            garden.say(data.draw(TEXTS))
        else:
            garden.evict(data.draw(st.integers(1, 400)))
        router.learn(index, garden.tree.outline(ROOT))
        assert set(router.paths.values()) == restorable_paths(garden, window)


def test_another_root_is_not_told_of() -> None:
    garden = Garden()
    garden.say("abcabc", root=b"other salt")
    assert garden.tree.outline(ROOT) == []
    assert BlockIndex(3, SIZE).update(garden.tree.outline(b"other salt")).stored


def test_what_was_told_is_not_hashed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []

    def counted(parent: int | None, tokens: array[int]) -> int:
        hashed.append(tokens)
        return len(hashed)

    monkeypatch.setattr("sapwood.daemon.gateway.blocks._hash", counted)
    garden, index = Garden(), BlockIndex(3, SIZE)
    garden.say("abcabcabc")
    index.update(garden.tree.outline(ROOT))
    garden.say("abcabcabcabc")
    index.update(garden.tree.outline(ROOT))
    assert len(hashed) <= 3 + 4, "the new edge, and one that a merge began anew"
    before = len(hashed)
    assert index.update(garden.tree.outline(ROOT)) == ((), ())
    assert len(hashed) == before


def test_an_end_without_its_window_is_left_out_with_all_that_leads_only_there() -> None:
    def edge(id: int, parent: int | None, start: int, end: int, sliding_start: int) -> EdgeView:
        return EdgeView(id, parent, start, end, sliding_start, array("i", range(start, end)))

    trunk, thinned, whole = edge(1, None, 0, 8, 8), edge(2, 1, 8, 12, 12), edge(3, 1, 8, 12, 8)
    assert restorable_edges([trunk, thinned], 4) == set()
    assert restorable_edges([trunk, thinned, whole], 4) == {1, 3}
    assert restorable_edges([trunk, edge(3, 1, 8, 11, 8)], 4) == set(), "one token too few"
    assert restorable_edges([edge(1, None, 0, 3, 0)], 4) == {1}, "a window from the beginning on"


def test_runs_are_cut_where_a_path_ends_and_where_they_are_long() -> None:
    def block(hash: int, parent: int | None) -> TokenBlock:
        return TokenBlock(hash, parent, array("i", [1] * BLOCK))

    chain = [block(1, None), block(2, 1), block(3, 2), block(5, 1), block(6, 5)]
    assert [[one.hash for one in run] for run in runs(chain, 2)] == [[1, 2], [3], [5, 6]]

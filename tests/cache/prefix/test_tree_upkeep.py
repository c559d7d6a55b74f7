"""Merging, bounds, and what the tree tells of itself. Drawings are explained in garden.py."""

from __future__ import annotations

import pytest

from sapwood.cache.prefix.node import Node
from sapwood.cache.prefix.radix import MERGED_EDGES_MAX
from sapwood.cache.prefix.tree import Tree
from tests.cache.prefix.garden import ROOT, Garden, Inserted, drawing, ids
from tests.fakes import FULL_BYTES, SLIDING_BYTES, TokenLog

BYTES = FULL_BYTES + SLIDING_BYTES


def test_slices_of_a_prefill_merge_when_its_lease_ends() -> None:
    garden = Garden(merge_tokens_max=4)
    lease = garden.lease("")
    for end in range(1, 7):
        garden.extend(lease, "abcdef"[:end])
    assert garden.tracker.copied_tokens == 0, "never on the path of a slice"
    before = garden.tree.bytes
    garden.tree.release(lease, garden.step())
    assert garden.draw() == drawing(
        """
        ABCD
          EF*
        """
    )
    assert (garden.tree.bytes, garden.tree.merges) == (before, 4)
    assert garden.tracker.copied_tokens == 4 + 4 + 2, "pairs, then pairs of pairs"


def test_a_merged_node_has_the_newer_age_and_all_hits() -> None:
    garden = Garden()
    lease = garden.lease("")
    garden.extend(lease, "abc")
    garden.extend(lease, "abcdef")
    other = garden.lease("abcdef", 2)
    garden.tree.hit(other)
    garden.tree.release(other, garden.step())
    garden.tree.release(lease, garden.step())
    assert garden.ages() == {"-": 1, "f": garden.now}
    assert [view.hits for view in garden.tree.describe() if view.end == 6] == [1]


def test_nothing_merges_across_a_turns_end_a_branch_or_another_lease() -> None:
    garden = Garden()
    garden.say("ab")
    garden.say("abcd")
    lease = garden.lease("abcd")
    garden.extend(lease, "abcdef")
    garden.extend(lease, "abcdefgh")
    other = garden.lease("abcdefg", 5)
    garden.tree.release(lease, garden.step())
    drawn = drawing(
        """
        AB*+1
          CD*+1
            EF+1
              GH*
        """
    )
    assert garden.draw() == drawn
    garden.tree.release(other, garden.step())
    assert garden.draw() == drawn.replace("+1", ""), "EF is the last node of that path"
    garden.say("abcdefgh")
    assert garden.draw() == drawing(
        """
        AB*
          CD*
            EFGH*
        """
    )


def test_t4_nothing_merges_where_sliding_kv_would_fall_into_a_gap() -> None:
    garden = Garden()
    lease = garden.lease("")
    garden.extend(lease, "ab", sliding=0)
    garden.extend(lease, "abcd", sliding=1)
    garden.extend(lease, "abcdef")
    garden.extend(lease, "abcdefgh", sliding=1)
    garden.tree.release(lease, garden.step())
    assert garden.draw() == drawing(
        """
        abcDEF
          gH*
        """
    )


def test_a_long_prefill_is_copied_a_bounded_number_of_times_and_in_bounded_pauses() -> None:
    slice_tokens, edge_tokens, edges = 8, 64, 10
    tokens = tuple(range(edges * edge_tokens))
    garden = Garden(merge_tokens_max=edge_tokens)
    lease = garden.tree.lease(ROOT, (), 0, 0)
    for end in range(slice_tokens, len(tokens) + 1, slice_tokens):
        log = garden.tracker.log(tokens, end - slice_tokens, end)
        garden.tree.extend(lease, tokens, log, 0)
    pauses = []
    for _ in range(4):
        before = garden.tracker.copied_tokens
        garden.tree.release(lease, 0)
        lease = garden.tree.lease(ROOT, tokens, len(tokens), 0)
        pauses.append(garden.tracker.copied_tokens - before)
    full_pause = MERGED_EDGES_MAX * edge_tokens * 3  # log2(64 / 8) rounds
    assert pauses == [full_pause, full_pause, full_pause // 2, 0]
    assert garden.tree.nodes == edges


# Bounds, bookkeeping, views.


def test_the_number_of_nodes_is_bounded_by_dropping_the_oldest_leaves() -> None:
    garden = Garden(nodes_max=4)
    for text in ("abc", "def", "ghi", "jkl"):
        garden.say(text)
    lease = garden.lease("")
    inserted = garden.extend(lease, "mno")
    assert inserted == Inserted(0, 0, False), "one came, one went"
    assert garden.draw() == "DEF*\nGHI*\nJKL*\nMNO+1"
    assert garden.tree.evictions["crowded"] == 1


def test_leased_nodes_may_be_more_but_not_after_their_release() -> None:
    garden = Garden(nodes_max=2, merge_tokens_max=1)
    garden.say("xyz")
    lease = garden.lease("")
    for end in (1, 2, 3, 4):
        garden.extend(lease, "abcd"[:end])
    assert garden.draw() == "A+1\n  B+1\n    C+1\n      D+1"
    garden.tree.release(lease, garden.step())
    assert garden.draw() == "A\n  B"


def test_a_clearing_closes_all_that_nobody_leases() -> None:
    garden = Garden()
    garden.say("abcdef")
    garden.say("xyz")
    lease = garden.lease("abc", 3)
    garden.extend(lease, "abcq")
    held = garden.tree.bytes
    assert garden.tree.clear().freed_bytes == 6 * BYTES
    assert garden.tree.bytes == held - 6 * BYTES
    assert garden.draw() == "ABC*+1\n  Q+1"
    assert garden.tree.evictions == {"thinned": 0, "evicted": 0, "crowded": 0, "cleared": 2}
    garden.tree.release(lease, garden.step())
    garden.tree.clear()
    assert (garden.tree.nodes, garden.tree.bytes, garden.tree.depth_tokens) == (0, 0, 0)
    assert not garden.tracker.live


def test_depth_is_the_longest_paths_end() -> None:
    garden = Garden()
    garden.say("abcdef")
    garden.say("abcd" + "x" * 10)
    assert garden.tree.depth_tokens == 14
    garden.say("abcdef")
    garden.evict(12 * BYTES)
    assert garden.draw() == "aBCD*"
    garden.say("xyz")
    assert garden.tree.depth_tokens == 4


def test_what_is_remembered_of_ends_that_are_gone_is_bounded() -> None:
    garden = Garden(nodes_max=5)
    garden.say("abcdefghijklm")
    for number in range(300):
        garden.say(f"{chr(200 + number)}z")
        garden.say("abcdefghijklm")
    assert garden.tree.depth_tokens == 13
    assert len(garden.tree._totals.ends) < 100


def test_describe_gives_tokens_only_where_asked() -> None:
    garden = Garden()
    garden.extend(garden.lease(""), "abc", turn_end=True)
    root, node = garden.tree.describe()
    assert (root.tokens, node.tokens) == (None, None)
    assert (node.parent, node.start, node.end, node.sliding_start) == (root.id, 0, 3, 0)
    assert (node.full_bytes, node.sliding_bytes, node.marked) == (9, 30, True)
    assert [view.tokens for view in garden.tree.describe(tokens=True)] == [(), ids("abc")]


def test_check_finds_what_is_broken() -> None:
    """Each invariant that check() names is broken once, by hand."""

    def other_root(tree: Tree, node: Node) -> None:
        node.above.above.root = b"other"

    def gap(tree: Tree, node: Node) -> None:
        node.start = 4

    def renamed(tree: Tree, node: Node) -> None:
        node.above.edge[0] = 7

    def longer_edge(tree: Tree, node: Node) -> None:
        node.edge.append(7)

    def longer_node(tree: Tree, node: Node) -> None:
        node.edge.append(7)
        node.end = 7

    def more_sliding(tree: Tree, node: Node) -> None:
        assert isinstance(node.payload, TokenLog)
        node.payload._sliding = (0,) * 4

    def not_live(tree: Tree, node: Node) -> None:
        next(iter(node.landed)).live = False

    def too_far(tree: Tree, node: Node) -> None:
        next(iter(node.landed)).end = 7

    def miscounted_lease(tree: Tree, node: Node) -> None:
        node.above.leases += 1

    def shared_payload(tree: Tree, node: Node) -> None:
        for sibling in node.above.children.values():
            sibling.payload = node.payload

    def miscounted_bytes(tree: Tree, node: Node) -> None:
        tree._totals.full_bytes += 1

    def miscounted_nodes(tree: Tree, node: Node) -> None:
        tree._totals.listed.append(node)

    def wrong_depth(tree: Tree, node: Node) -> None:
        tree._totals.ends.insert(0, (-7, node.id, node))

    for breaks, message in [
        (other_root, r"\[0, 0\) is no root"),
        (gap, r"T1: node \d+ \[4, 6\) under node \d+ \[0, 3\)"),
        (longer_edge, r"T1: node \d+ \[3, 6\) of 4 tokens"),
        (renamed, r"T1: node \d+ \[0, 0\) does not lead to node \d+ \[0, 3\)"),
        (longer_node, r"T9: \[3, 6\) with sliding from 3 in node \d+ \[3, 7\)"),
        (more_sliding, r"T9: \[3, 6\) with sliding from 2"),
        (not_live, r"T5: released lease of \[0, 6\)"),
        (too_far, r"T5: live lease of \[0, 7\)"),
        (miscounted_lease, r"T5: node \d+ \[0, 3\) counts 2 of 1"),
        (shared_payload, "T7: two nodes own one payload"),
        (miscounted_bytes, "counted Weight"),
        (miscounted_nodes, "counted 4 nodes of 3"),
        (wrong_depth, "depth 7 of 6"),
    ]:
        garden = Garden()
        garden.say("abcdef")
        garden.say("abcxyz")
        lease = garden.lease("abcdef")
        garden.check()
        breaks(garden.tree, lease.node)
        with pytest.raises(AssertionError, match=message):
            garden.tree.check()

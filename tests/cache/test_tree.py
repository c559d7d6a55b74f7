"""The tree's contract, line by line. Drawings are explained in garden.py."""

from __future__ import annotations

import pytest

from cache.radix import MERGED_EDGES_MAX, Node, pack
from cache.tree import Inserted, Match, Tree
from tests.cache.garden import ROOT, Garden, drawing, ids
from tests.fakes import FULL_BYTES, SLIDING_BYTES, TokenLog

BYTES = FULL_BYTES + SLIDING_BYTES


def match(garden: Garden, text: str, limit: int | None = None, root: bytes = ROOT) -> Match:
    """Match; T2: nothing observable changes."""
    before = list(garden.tree.describe(tokens=True))
    found = garden.tree.match(root, ids(text), limit)
    assert list(garden.tree.describe(tokens=True)) == before
    return found


# Matching.


def test_t2_an_empty_tree_matches_nothing() -> None:
    garden = Garden()
    assert match(garden, "abc") == match(garden, "") == Match(0, 0, False)
    assert garden.tree.depth_tokens == 0


def test_t2_one_token_is_always_left_to_evaluate() -> None:
    garden = Garden()
    garden.say("abcdef")
    assert match(garden, "abcdef") == Match(5, 6, False)
    assert match(garden, "abcdefg") == Match(6, 6, False)
    assert match(garden, "a") == Match(0, 1, False)
    assert match(garden, "") == Match(0, 0, False)


def test_t2_a_match_may_end_inside_an_edge_or_at_the_limit() -> None:
    garden = Garden()
    garden.say("abcdef")
    assert match(garden, "abcdxx") == Match(4, 4, False)
    assert match(garden, "abcdef", limit=2) == Match(2, 6, False)
    assert match(garden, "abcdef", limit=0) == Match(0, 6, False)
    assert match(garden, "abcdef", limit=99) == Match(5, 6, False)


def test_t2_packed_tokens_match_the_same() -> None:
    garden = Garden()
    garden.say("abcdef")
    assert garden.tree.match(ROOT, pack(ids("abcdxx"))) == Match(4, 4, False)


def test_t9_a_window_may_span_nodes_but_have_no_gap() -> None:
    """Window 3: the end of `abcd ef` needs d, e and f, which lie in two nodes."""
    garden = Garden(window=3)
    lease = garden.lease("")
    garden.extend(lease, "abcd", sliding=1)
    garden.extend(lease, "abcdef")
    assert garden.draw() == drawing(
        """
        abcD+1
          EF+1
        """
    )
    assert match(garden, "abcdefg") == Match(6, 6, False)
    assert match(garden, "abcdexx") == Match(0, 5, False), "[2, 5) lacks c"
    assert match(garden, "abcdxxx") == Match(0, 4, False)


def test_t9_a_prefix_shorter_than_the_window_needs_all_of_it() -> None:
    garden = Garden(window=5)
    lease = garden.lease("")
    garden.extend(lease, "ab")
    assert match(garden, "abx") == Match(2, 2, False)
    garden.extend(lease, "abcd", sliding=1)
    assert match(garden, "abcdx") == Match(2, 4, False), "[0, 4) lacks c"


def test_t2_the_longest_restorable_end_may_lie_above_thinned_nodes() -> None:
    garden = Garden(window=2)
    lease = garden.lease("")
    garden.extend(lease, "abcd")
    garden.extend(lease, "abcdefgh", sliding=0)
    assert match(garden, "abcdefghi") == Match(4, 8, False)


def test_t2_without_sliding_layers_everything_is_restorable() -> None:
    garden = Garden(window=0)
    garden.extend(garden.lease(""), "abcd", sliding=0)
    assert match(garden, "abcdx") == Match(4, 4, False)
    assert match(garden, "abx") == Match(2, 2, False)


def test_t8_root_keys_never_meet() -> None:
    garden = Garden()
    garden.say("abcdef", root=b"tenant a")
    assert match(garden, "abcdef", root=b"tenant b") == Match(0, 0, False)
    garden.say("abcxyz", root=b"tenant b")
    assert match(garden, "abcdef", root=b"tenant a") == Match(5, 6, False)
    assert match(garden, "abcdef", root=b"tenant b") == Match(3, 3, False)


# Why a token had to be computed again.


def test_evicted_is_told_from_diverged_and_cold() -> None:
    garden = Garden()
    garden.say("abcdef")
    garden.say("abcxyz")
    garden.evict(garden.tree.evictable_bytes() - 3 * FULL_BYTES)
    assert garden.draw() == "abc", "both ends went, then the window where they parted"
    assert match(garden, "abcdef") == Match(0, 3, True)
    assert match(garden, "abcd") == Match(0, 3, True), "as far as the prompt goes"
    assert match(garden, "abcxyy") == Match(0, 3, False), "another continuation was never here"
    assert match(garden, "abcq") == Match(0, 3, False)
    assert match(garden, "abq") == Match(0, 2, False), "inside an edge nothing was cut off"
    assert match(garden, "abc") == Match(0, 3, False), "nothing lies past the match"
    garden.say("abcdef")
    assert match(garden, "abcdeq") == Match(5, 5, False)


def test_evicted_is_remembered_when_the_root_is_gone() -> None:
    garden = Garden()
    garden.say("abcdef")
    garden.evict(garden.tree.evictable_bytes())
    assert list(garden.tree.describe()) == []
    assert match(garden, "abcdef") == Match(0, 0, True)
    assert match(garden, "xyz") == match(garden, "abcdef", root=b"other") == Match(0, 0, False)
    garden.lease("")
    assert match(garden, "abcdef") == Match(0, 0, True), "nor when it is back"


def test_evicted_marks_are_bounded_and_the_oldest_fade() -> None:
    garden = Garden(nodes_max=3)
    for text in ("abc", "bcd", "cde", "def"):
        garden.say(text)
        garden.evict(garden.tree.evictable_bytes())
    assert len(garden.tree._ghosts) == 3
    assert [match(garden, text).evicted for text in ("abc", "bcd", "def")] == [False, True, True]


# Leases.


def test_t5_a_lease_counts_once_on_every_node_of_its_path() -> None:
    garden = Garden()
    garden.say("abcdef")
    garden.say("abcxyz")
    one, two = garden.lease("abcdef"), garden.lease("abc")
    assert garden.draw() == drawing(
        """
        ABC*+2
          DEF*+1
          XYZ*
        """
    )
    garden.tree.release(one, garden.step())
    garden.tree.release(two, garden.step())
    assert garden.draw() == drawing(
        """
        ABC*
          DEF*
          XYZ*
        """
    )
    assert garden.tree.leased_bytes == 0


def test_a_lease_of_nothing_holds_the_root_until_it_ends() -> None:
    garden = Garden()
    lease = garden.lease("abc", 0)
    assert garden.tree.path(lease) == ()
    (root,) = garden.tree.describe(tokens=True)
    assert (root.parent, root.start, root.end, root.leases, root.hits) == (None, 0, 0, 1, 1)
    assert (root.tokens, root.full_bytes, root.sliding_bytes) == ((), 0, 0)
    garden.tree.drop()
    assert len(list(garden.tree.describe())) == 1
    garden.tree.release(lease, garden.step())
    assert list(garden.tree.describe()) == []


def test_t3_path_lends_the_payloads_that_cover_the_lease() -> None:
    """The last may reach past the end; a node that only begins there is not needed."""
    garden = Garden()
    garden.say("abcdef")
    garden.say("abcxyz")
    for end, expected in [(3, ["abc"]), (4, ["abc", "def"]), (6, ["abc", "def"]), (2, ["abc"])]:
        payloads = garden.tree.path(garden.lease("abcdef", end))
        logs = [payload for payload in payloads if isinstance(payload, TokenLog)]
        assert [bytes(log.full).decode() for log in logs] == expected
        assert len(logs) == len(payloads)


def test_t10_only_the_landing_node_refreshes_its_age() -> None:
    garden = Garden()
    garden.say("abcdef")  # steps 1 to 3
    garden.say("abcxyz")  # steps 4 to 6; landed inside the edge that it then split
    assert garden.ages() == {"-": 1, "c": 4, "f": 4, "z": 6}
    lease = garden.lease("abcdef")
    assert garden.ages() == {"-": 1, "c": 4, "f": 7, "z": 6}
    garden.extend(lease, "abcdefgh")
    assert garden.ages() == {"-": 1, "c": 4, "f": 7, "z": 6, "h": 8}
    garden.tree.release(lease, garden.step())
    assert garden.ages() == {"-": 1, "c": 4, "f": 7, "z": 6, "h": 9}


def test_a_hit_is_a_lease_that_lands_here() -> None:
    garden = Garden()
    garden.say("abc")
    garden.say("abcdef")
    garden.say("abcxyz")
    hits = {view.end: view.hits for view in garden.tree.describe() if view.leases == 0}
    assert hits == {0: 1, 3: 2, 6: 0}


def test_t10_the_clock_never_goes_back() -> None:
    garden = Garden()
    garden.tree.evict(1, 5)
    garden.tree.evict(1, 5)
    with pytest.raises(AssertionError, match="step 4 after step 5"):
        garden.tree.lease(ROOT, (), 0, 4)


def test_what_the_tree_does_not_have_cannot_be_leased() -> None:
    garden = Garden()
    garden.say("abcdef")
    with pytest.raises(AssertionError, match=r"cannot lease \[0, 5\): only \[0, 4\) is here"):
        garden.lease("abcdxx", 5)


def test_a_released_lease_is_of_no_use() -> None:
    garden = Garden()
    lease = garden.lease("")
    garden.extend(lease, "ab")
    garden.tree.release(lease, garden.step())
    story = r"released lease of \[0, 2\) in node \d+ \[0, 2\)"
    with pytest.raises(AssertionError, match=story):
        garden.tree.release(lease, garden.step())
    with pytest.raises(AssertionError, match=story):
        garden.tree.path(lease)
    log = garden.tracker.log(ids("abc"), 2, 3)
    with pytest.raises(AssertionError, match=rf"\[2, 3\) does not extend {story}"):
        garden.tree.extend(lease, ids("abc"), log, garden.step())
    log.close()


# Inserting.


def test_t1_a_new_path_becomes_nodes() -> None:
    garden = Garden()
    lease = garden.lease("")
    assert garden.extend(lease, "abcd") == Inserted(4 * BYTES, 4, 0, False)
    assert garden.extend(lease, "abcdef", sliding=1) == Inserted(6 + 10, 2, 0, False)
    assert lease.end == 6
    assert garden.draw() == drawing(
        """
        ABCD+1
          eF+1
        """
    )
    assert (garden.tree.nodes, garden.tree.depth_tokens) == (2, 6)
    assert garden.tree.full_bytes == garden.tree.leased_bytes == 6 * FULL_BYTES
    assert garden.tree.sliding_bytes == garden.tree.evictable_bytes() == 5 * SLIDING_BYTES
    assert garden.tree.bytes == 6 * FULL_BYTES + 5 * SLIDING_BYTES


def test_a_prefix_is_matchable_while_its_first_user_lives() -> None:
    garden = Garden()
    garden.extend(garden.lease(""), "abcd")
    assert match(garden, "abcde") == Match(4, 4, False)


def test_t5_a_path_that_parts_inside_an_edge_splits_it() -> None:
    """Leases up to the split stay on the upper half: nothing is protected that nobody needs."""
    garden = Garden()
    garden.say("abcdef")
    short, long, parting = (garden.lease("abcdef", end) for end in (2, 5, 3))
    inserted = garden.extend(parting, "abcxy")
    assert inserted == Inserted(2 * BYTES, 2, 0, True)
    assert garden.draw() == drawing(
        """
        ABC*+3
          DEF*+1
          XY+1
        """
    )
    assert (short.end, long.end, parting.end) == (2, 5, 5)
    assert garden.tree.leased_bytes == 8 * FULL_BYTES
    assert garden.tree.splits == 1
    garden.tree.release(long, garden.step())
    assert garden.tree.leased_bytes == 5 * FULL_BYTES
    assert len(garden.tree.path(short)) == 1


def test_t12_inserting_what_is_here_frees_the_duplicate() -> None:
    garden = Garden()
    garden.say("abcdef")
    first, second = garden.lease("", 0), garden.lease("", 0)
    assert garden.extend(first, "abcd") == Inserted(0, 0, 0, False), "inside the edge: no split"
    assert garden.extend(first, "abcdef") == Inserted(0, 0, 0, False)
    assert garden.extend(second, "abcdef") == Inserted(0, 0, 0, False)
    assert garden.extend(second, "abcdefg", start=2) == Inserted(BYTES, 1, 0, False)
    assert (first.end, second.end) == (6, 7)
    assert garden.draw() == drawing(
        """
        ABCDEF*+2
          G+1
        """
    )


def test_t12_two_cold_sessions_compute_one_prefix_and_part() -> None:
    """Slices of different sizes end at different places; the tree keeps one copy."""
    garden = Garden()
    one, two = garden.lease(""), garden.lease("")
    garden.extend(one, "abcd")
    garden.extend(two, "ab")
    garden.extend(one, "abcdefgh")
    assert garden.extend(two, "abcdexy") == Inserted(2 * BYTES, 2, 0, True)
    assert garden.draw() == drawing(
        """
        ABCD+2
          E*+2
            FGH+1
            XY+1
        """
    )


def test_t12_a_cancelled_prefill_resumes_where_it_stopped() -> None:
    garden = Garden()
    lease = garden.lease("")
    garden.extend(lease, "abcd")
    garden.extend(lease, "abcdef")
    garden.tree.release(lease, garden.step())
    assert match(garden, "abcdefgh") == Match(6, 6, False)


def test_a_payload_may_lie_inside_what_its_lease_covers() -> None:
    garden = Garden()
    garden.say("abcdef")
    lease = garden.lease("abcdef")
    ages = garden.ages()
    assert garden.extend(lease, "abcd", start=2) == Inserted(0, 0, 0, False)
    assert (lease.end, garden.ages()) == (6, ages), "the frontier is elsewhere"


@pytest.mark.parametrize(
    ("start", "sliding", "renewed", "split", "drawn"),
    [
        (0, 6, 6, False, "ABCDEF*+1"),
        (0, 2, 0, False, "abcDEF*+1"),
        (2, 4, 4, True, "ab+1\n  CDEF*+1"),
    ],
)
def test_a_thinned_range_that_was_computed_again_is_whole(
    start: int, sliding: int, renewed: int, split: bool, drawn: str
) -> None:
    garden = Garden()
    garden.say("abcdef")
    garden.evict(1)
    assert garden.draw() == "abcDEF*"
    lease = garden.lease("abcdef", start)
    gained = garden.tree.bytes
    inserted = garden.extend(lease, "abcdef", sliding=sliding)
    gained = garden.tree.bytes - gained
    assert inserted == Inserted(gained, 0, renewed, split)
    assert garden.draw() == drawing(drawn)


def test_the_middle_of_an_edge_is_renewed_where_paths_now_part() -> None:
    """The third prompt that shares `abcd` finds the window that the second one brought back."""
    garden = Garden(window=3, merge_tokens_max=1)
    garden.say("abcdefgh")
    garden.evict(1)
    assert garden.draw() == "abcdeFGH*"
    assert match(garden, "abcdxx") == Match(0, 4, False)
    lease = garden.lease("", 0)
    garden.extend(lease, "ab", sliding=0)
    assert garden.extend(lease, "abcdx", start=1, sliding=4) == Inserted(BYTES + 30, 1, 3, True)
    assert garden.draw() == drawing(
        """
        a+1
          BCD*+1
            eFGH*
            X+1
        """
    )
    assert match(garden, "abcdyy") == Match(4, 4, False)


def test_a_slice_that_ends_inside_a_thinned_edge_is_renewed_there() -> None:
    garden = Garden()
    garden.say("abcdefgh")
    garden.evict(1)
    lease = garden.lease("", 0)
    assert garden.extend(lease, "ab") == Inserted(2 * SLIDING_BYTES, 0, 2, True)
    assert garden.extend(lease, "abcd") == Inserted(2 * SLIDING_BYTES, 0, 2, True)
    assert garden.draw() == drawing(
        """
        AB+1
          CD+1
            eFGH*
        """
    )
    assert match(garden, "abcdxx") == Match(4, 4, False)
    garden.tree.release(lease, garden.step())
    assert garden.draw() == "ABCD*\n  eFGH*"


def test_renewal_takes_only_the_nodes_that_gain() -> None:
    garden = Garden(window=2, merge_tokens_max=1)
    lease = garden.lease("")
    for text, sliding in [("ab", 0), ("abcd", 2), ("abcdef", 1)]:
        garden.extend(lease, text, sliding=sliding)
    garden.tree.release(lease, garden.step())
    other = garden.lease("", 0)
    assert garden.extend(other, "abcdef", sliding=6) == Inserted(30, 0, 4, False)
    assert garden.draw() == drawing(
        """
        AB+1
          CD+1
            EF*+1
        """
    )


def test_turn_end_keeps_a_node_at_a_prompts_end() -> None:
    garden = Garden()
    lease = garden.lease("")
    garden.extend(lease, "abcd", turn_end=True)
    garden.extend(lease, "abcdef")
    garden.tree.release(lease, garden.step())
    assert garden.draw() == drawing(
        """
        ABCD*
          EF*
        """
    )
    other = garden.lease("", 0)
    assert garden.extend(other, "abc", turn_end=True) == Inserted(0, 0, 0, True)
    assert garden.draw() == drawing(
        """
        ABC*+1
          D*
            EF*
        """
    )


def test_extend_refuses_a_gap_a_wrong_path_and_too_few_tokens() -> None:
    garden = Garden()
    lease = garden.lease("")
    garden.extend(lease, "abcd")
    late = garden.tracker.log(ids("abcdefg"), 5, 7)
    with pytest.raises(AssertionError, match=r"\[5, 7\) does not extend live lease of \[0, 4\)"):
        garden.tree.extend(lease, ids("abcdefg"), late, garden.step())
    wrong = garden.tracker.log(ids("abxxe"), 1, 5)
    with pytest.raises(AssertionError, match=r"tokens leave live lease of \[0, 4\) .* at 2"):
        garden.tree.extend(lease, ids("abxxe"), wrong, garden.step())
    with pytest.raises(AssertionError, match=r"\[1, 5\) of 4 tokens"):
        garden.tree.extend(lease, ids("abxx"), wrong, garden.step())
    late.close()
    wrong.close()
    garden.check()


def test_tokens_may_reach_past_the_payload() -> None:
    garden = Garden()
    lease = garden.lease("")
    log = garden.tracker.log(ids("abcdef"), 0, 2)
    garden.tree.extend(lease, ids("abcdef"), log, garden.step())
    assert garden.draw() == "AB+1"


# Merging.


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
    assert inserted == Inserted(0, 3, 0, False), "one came, one went"
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


def test_drop_closes_all_that_nobody_leases() -> None:
    garden = Garden()
    garden.say("abcdef")
    garden.say("xyz")
    lease = garden.lease("abc", 3)
    garden.extend(lease, "abcq")
    held = garden.tree.bytes
    assert garden.tree.drop() == 6 * BYTES
    assert garden.tree.bytes == held - 6 * BYTES
    assert garden.draw() == "ABC*+1\n  Q+1"
    assert garden.tree.evictions == {"thinned": 0, "evicted": 0, "crowded": 0, "cleared": 2}
    garden.tree.release(lease, garden.step())
    garden.tree.drop()
    assert (garden.tree.nodes, garden.tree.bytes, garden.tree.depth_tokens) == (0, 0, 0)
    assert not garden.tracker.live


def test_depth_is_the_longest_paths_end() -> None:
    garden = Garden()
    garden.say("abcdef")
    garden.say("abcd" + "x" * 10)
    assert garden.tree.depth_tokens == 14
    garden.say("abcdef")
    garden.evict(10 * BYTES)
    assert garden.draw() == "abcD\n  EF*"
    garden.say("xyz")
    assert garden.tree.depth_tokens == 6


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

    def longer(tree: Tree, node: Node) -> None:
        node.edge.append(7)

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
        tree._totals.nodes += 1

    def wrong_depth(tree: Tree, node: Node) -> None:
        tree._totals.deepest = 7

    for breaks, message in [
        (other_root, r"\[0, 0\) is no root"),
        (gap, r"T1: node \d+ \[4, 7\) under node \d+ \[0, 3\)"),
        (renamed, r"T1: node \d+ \[0, 0\) does not lead to node \d+ \[0, 3\)"),
        (longer, r"T9: \[3, 6\) with sliding from 3 in node \d+ \[3, 7\)"),
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

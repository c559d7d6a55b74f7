"""Matching, why a token is computed again, and leases. Drawings are explained in garden.py."""

from __future__ import annotations

import pytest

from sapwood.cache.prefix.radix import pack
from sapwood.cache.prefix.tree import Match
from tests.cache.prefix.garden import ROOT, Garden, drawing, ids
from tests.fakes import FULL_BYTES, SLIDING_BYTES, TokenLog

# Matching.


def test_t2_an_empty_tree_matches_nothing() -> None:
    garden = Garden()
    assert garden.match("abc") == garden.match("") == Match(0, 0, False)
    assert garden.tree.depth_tokens == 0


def test_t2_one_token_is_always_left_to_evaluate() -> None:
    garden = Garden()
    garden.say("abcdef")
    assert garden.match("abcdef") == Match(5, 6, False)
    assert garden.match("abcdefg") == Match(6, 6, False)
    assert garden.match("a") == Match(0, 1, False)
    assert garden.match("") == Match(0, 0, False)


def test_t2_a_match_may_end_inside_an_edge_or_at_the_limit() -> None:
    garden = Garden()
    garden.say("abcdef")
    assert garden.match("abcdxx") == Match(4, 4, False)
    assert garden.match("abcdef", limit=2) == Match(2, 6, False)
    assert garden.match("abcdef", limit=0) == Match(0, 6, False)
    assert garden.match("abcdef", limit=99) == Match(5, 6, False)


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
    assert garden.match("abcdefg") == Match(6, 6, False)
    assert garden.match("abcdexx") == Match(0, 5, False), "[2, 5) lacks c"
    assert garden.match("abcdxxx") == Match(0, 4, False)


def test_t9_a_prefix_shorter_than_the_window_needs_all_of_it() -> None:
    garden = Garden(window=5)
    lease = garden.lease("")
    garden.extend(lease, "ab")
    assert garden.match("abx") == Match(2, 2, False)
    garden.extend(lease, "abcd", sliding=1)
    assert garden.match("abcdx") == Match(2, 4, False), "[0, 4) lacks c"


def test_t2_the_longest_restorable_end_may_lie_above_thinned_nodes() -> None:
    garden = Garden(window=2)
    lease = garden.lease("")
    garden.extend(lease, "abcd")
    garden.extend(lease, "abcdefgh", sliding=0)
    assert garden.match("abcdefghi") == Match(4, 8, False)


def test_t2_without_sliding_layers_everything_is_restorable() -> None:
    garden = Garden(window=0)
    garden.extend(garden.lease(""), "abcd", sliding=0)
    assert garden.match("abcdx") == Match(4, 4, False)
    assert garden.match("abx") == Match(2, 2, False)


def test_t8_root_keys_never_meet() -> None:
    garden = Garden()
    garden.say("abcdef", root=b"tenant a")
    assert garden.match("abcdef", root=b"tenant b") == Match(0, 0, False)
    garden.say("abcxyz", root=b"tenant b")
    assert garden.match("abcdef", root=b"tenant a") == Match(5, 6, False)
    assert garden.match("abcdef", root=b"tenant b") == Match(3, 3, False)


# Why a token had to be computed again.


def test_evicted_is_told_from_diverged_and_cold() -> None:
    garden = Garden()
    garden.say("abcdef")
    garden.say("abcxyz")
    garden.evict(6 * (FULL_BYTES + SLIDING_BYTES))
    assert garden.draw() == "ABC*", "both ends went"
    assert garden.match("abcdef") == Match(3, 3, True)
    assert garden.match("abcd") == Match(3, 3, True), "as far as the prompt goes"
    assert garden.match("abcxyy") == Match(3, 3, False), "another continuation was never here"
    assert garden.match("abcq") == Match(3, 3, False)
    assert garden.match("abqdef") == Match(2, 2, False), "inside an edge nothing was cut off"
    assert garden.match("abc") == Match(2, 3, False), "nothing lies past the match"
    garden.say("abcdef")
    assert garden.match("abcdeq") == Match(5, 5, False)


def test_evicted_is_remembered_when_the_root_is_gone() -> None:
    garden = Garden()
    garden.say("abcdef")
    garden.evict(garden.tree.evictable().bytes)
    assert list(garden.tree.describe()) == []
    assert garden.match("abcdef") == Match(0, 0, True)
    assert garden.match("xyz") == garden.match("abcdef", root=b"other") == Match(0, 0, False)
    garden.lease("")
    assert garden.match("abcdef") == Match(0, 0, True), "nor when it is back"


def test_evicted_marks_are_bounded_and_the_oldest_fade() -> None:
    garden = Garden(nodes_max=3)
    for text in ("abc", "bcd", "cde", "def"):
        garden.say(text)
        garden.evict(garden.tree.evictable().bytes)
    assert len(garden.tree._ghosts) == 3
    assert [garden.match(text).evicted for text in ("abc", "bcd", "def")] == [False, True, True]


def test_an_edge_that_is_evicted_again_is_marked_anew() -> None:
    garden = Garden(nodes_max=2)
    for text in ("abc", "bcd", "abc", "cde"):
        garden.say(text)
        garden.evict(garden.tree.evictable().bytes)
    assert [garden.match(text).evicted for text in ("abc", "bcd", "cde")] == [True, False, True]


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
    assert (root.parent, root.start, root.end, root.leases, root.hits) == (None, 0, 0, 1, 0)
    assert (root.tokens, root.full_bytes, root.sliding_bytes) == ((), 0, 0)
    garden.tree.clear()
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


def test_a_hit_is_a_prompt_served_through_a_node() -> None:
    """A split leaves it to the part that served; a lease by itself is none."""
    garden = Garden()
    garden.say("abcdef")
    garden.say("abcdef")
    for prompt, end in (("abcdef", 6), ("abcdxy", 4)):
        lease = garden.lease(prompt, end)
        garden.tree.hit(lease)
        garden.extend(lease, prompt + "z")
        garden.tree.release(lease, garden.step())
    hits = {view.end: view.hits for view in garden.tree.describe() if view.parent is not None}
    assert hits == {4: 3, 6: 2, 7: 0}


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

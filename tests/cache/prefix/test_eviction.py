"""What goes first (T6). Drawings are explained in garden.py; window 3 unless said otherwise."""

from __future__ import annotations

from sapwood.cache.prefix.eviction import PASS_SHARE
from tests.cache.prefix.garden import Garden, drawing
from tests.fakes import FULL_BYTES, SLIDING_BYTES

BYTES = FULL_BYTES + SLIDING_BYTES


def test_t6_slack_goes_first_that_of_the_oldest_node_first() -> None:
    """Sliding K/V that no turn's end reads is thinned, the windows stay."""
    garden = Garden()
    garden.say("abcdef")
    garden.say("uvwxyz")
    assert garden.evict(1) == {"freed": 3 * SLIDING_BYTES, "thinned": 1}
    assert garden.draw() == "abcDEF*\nUVWXYZ*"
    assert garden.evict(1) == {"freed": 3 * SLIDING_BYTES, "thinned": 1}
    assert garden.draw() == "abcDEF*\nuvwXYZ*"


def test_t6_windows_stay_at_turn_ends_and_where_paths_parted() -> None:
    garden = Garden()
    garden.say("abcdefgh")
    garden.say("abcdefghijklm")
    garden.say("abcdxyzuvw")
    garden.evict(7 * SLIDING_BYTES)
    assert garden.draw() == drawing(
        """
        aBCD*
          eFGH*
            ijKLM*
          xyzUVW*
        """
    )
    assert garden.tree.evictions["evicted"] == 0


def test_t6_a_window_that_begins_in_the_node_above_is_kept_there() -> None:
    garden = Garden(window=4, merge_tokens_max=1)
    lease = garden.lease("")
    garden.extend(lease, "abcdef")
    garden.extend(lease, "abcdefg")
    garden.extend(lease, "abcdefgh")
    garden.tree.release(lease, garden.step())
    garden.evict(1)
    assert garden.draw() == drawing(
        """
        abcdEF
          G
            H*
        """
    )
    assert garden.tree.match(b"root", b"abcdefghi").tokens == 8


def test_t6_a_live_leases_window_is_kept_like_a_turns_end() -> None:
    """Inside an edge too: a sequence may be about to restore there."""
    garden = Garden()
    garden.say("abcdefghij")
    lease = garden.lease("abcdefx", 6)
    garden.evict(1)
    assert garden.draw() == "abcDEFGHIJ*+1"
    garden.tree.release(lease, garden.step())
    garden.evict(1)
    assert garden.draw() == "abcdefgHIJ*"


def test_t6_of_ends_that_are_alike_the_one_that_idles_longest_goes_first() -> None:
    garden = Garden()
    garden.say("abc")
    garden.say("abcdef")
    garden.say("xyz")
    garden.say("abc")
    assert garden.evict(1) == {"freed": 3 * BYTES, "evicted": 1}
    assert garden.draw() == "ABC*\nXYZ*"
    assert garden.evict(1) == {"freed": 3 * BYTES, "evicted": 1}
    assert garden.draw() == "ABC*"


def test_t6_the_window_of_an_old_turn_goes_before_a_newer_leaf() -> None:
    garden = Garden()
    garden.say("abc")
    garden.say("abcdef")
    assert garden.evict(1) == {"freed": 3 * SLIDING_BYTES, "thinned": 1}
    assert garden.draw() == "abc\n  DEF*"
    garden.say("abcdef")
    assert garden.draw() == "abcDEF*", "no longer a restore point, so it merged"


def test_t6_a_window_shared_with_a_later_end_goes_only_in_part() -> None:
    garden = Garden(window=4)
    garden.say("abcdef")
    garden.say("abcdefgh")
    garden.evict(2 * SLIDING_BYTES)
    assert garden.draw() == "abCDEF*\n  GH*"
    for _ in range(12):  # the old end idles, the new one does not
        garden.say("abcdefgh")
    garden.evict(1)
    assert garden.draw() == "abcdEF\n  GH*", "the end at 8 still reads [4, 8)"
    garden.evict(1)
    assert garden.draw() == "abcdef", "and then nobody reads [4, 6)"


def test_t6_what_saves_least_for_its_bytes_goes_first() -> None:
    """One token behind a window of one that nobody shares; three of them; four for a few more."""
    garden = Garden()
    for text, sliding in (("xya", None), ("wxyz", 3), ("abcdefgh", 3)):
        garden.extend(garden.lease("", 0), text, sliding=sliding, turn_end=True)
    for lease in [lease for node in garden.tree._totals.listed for lease in node.landed]:
        garden.tree.release(lease, 50)
    garden.now = 50
    assert garden.evict(1) == {"freed": 3 * BYTES, "evicted": 1}
    assert garden.evict(1) == {"freed": 4 * FULL_BYTES + 3 * SLIDING_BYTES, "evicted": 1}
    assert garden.draw() == "abcdeFGH*"


def test_t6_ends_that_share_a_window_do_not_protect_each_other() -> None:
    """Four branches of one token read one window. Alone each would free next to nothing."""
    garden = Garden(window=8, merge_tokens_max=1)
    for last in "wxyz":
        garden.say("abcdefgh" + last)
    for _ in range(20):  # what else is here is in use
        garden.say("klmnopqr")
    garden.evict(8 * BYTES)
    assert "KLMNOPQR*" in garden.draw()
    assert not any(last in garden.draw().lower() for last in "wxyz")


def test_t6_ends_of_a_kind_that_is_never_asked_for_go_before_older_ones() -> None:
    """Prompts go on where the last prompt ended; the replies, stored behind them, never do."""
    garden = Garden(merge_tokens_max=1)
    for turn in range(1, 12):
        prompt = "abc" * turn
        lease = garden.lease(prompt)
        if lease.end:
            garden.tree.hit(lease)
        garden.extend(lease, prompt, turn_end=True)
        garden.extend(lease, prompt + "uvwxyz", turn_end=True)
        garden.tree.release(lease, garden.step())
    for _ in range(14):
        garden.evict(1)
    kept = garden.draw().lower()
    assert kept.count("abc") == 11 and kept.count("uvwxyz") <= 5, kept
    assert garden.match("abc" * 11 + "d").tokens == 33


def test_t6_a_leaf_that_cannot_be_restored_goes_before_older_ones() -> None:
    garden = Garden()
    garden.say("xyz")
    lease = garden.lease("")
    garden.extend(lease, "abcd", sliding=1)
    garden.tree.release(lease, garden.step())
    assert garden.evict(SLIDING_BYTES + 1)["freed"] == 4 * FULL_BYTES + SLIDING_BYTES
    assert garden.draw() == "XYZ*"


def test_t6_a_parent_left_without_children_is_the_next_leaf() -> None:
    garden = Garden(merge_tokens_max=1)
    lease = garden.lease("")
    for text in ("abc", "abcdef", "abcdefghi"):
        garden.extend(lease, text)
    garden.tree.release(lease, garden.step())
    for _ in range(8):
        garden.say("xyz")
    garden.evict(6 * SLIDING_BYTES)
    assert garden.draw() == "abc\n  def\n    GHI*\nXYZ*"
    assert garden.evict(3 * BYTES + 1) == {"freed": 3 * BYTES + 3 * FULL_BYTES, "evicted": 2}
    assert garden.draw() == "abc\nXYZ*", "without a window nobody can go on from abc or def"


def test_t6_with_a_leaf_goes_what_only_its_window_read_along_the_whole_path() -> None:
    garden = Garden(window=6, merge_tokens_max=1)
    lease = garden.lease("")
    for text in ("ab", "abcd", "abcdef", "abcdefgh"):
        garden.extend(lease, text)
    garden.tree.release(lease, garden.step())
    garden.evict(1)
    assert garden.draw() == "ab\n  CD\n    EF\n      GH*"
    garden.evict(1)
    assert garden.draw() == "ab\n  cd\n    ef"


def test_t6_an_unmarked_leaf_that_can_be_restored_is_worth_something() -> None:
    """In the pass that made it a leaf, and in the next one."""
    for wanted in ([3 * BYTES, 1], [3 * BYTES + 1]):
        garden = Garden(window=6, merge_tokens_max=1)
        garden.say("xyz")
        lease = garden.lease("")
        garden.extend(lease, "abc")
        garden.extend(lease, "abcdef")
        garden.tree.release(lease, garden.step())
        for each in wanted:
            garden.evict(each)
        assert garden.draw() == "ABC"


def test_t6_a_parent_that_can_still_be_restored_keeps_its_age() -> None:
    garden = Garden()
    garden.say("abcdef")
    garden.say("abcxyz")
    garden.tree.release(garden.lease("abc"), garden.step())
    garden.say("uvw")
    assert garden.evict(6 * BYTES) == {"freed": 6 * BYTES, "evicted": 2}
    assert garden.draw() == "ABC*\nUVW*"


def test_t6_leased_full_kv_never_goes_and_leased_windows_go_last() -> None:
    garden = Garden()
    garden.say("xyz")
    lease = garden.lease("")
    garden.extend(lease, "abcdef")
    assert garden.tree.evictable().bytes == 3 * BYTES + 6 * SLIDING_BYTES
    garden.evict(3 * SLIDING_BYTES)
    assert garden.draw() == "abcDEF+1\nXYZ*"
    garden.evict(1)
    assert garden.draw() == "abcDEF+1"
    assert garden.evict(SLIDING_BYTES) == {"freed": 3 * SLIDING_BYTES, "thinned": 1}
    assert garden.draw() == "abcdef+1"
    assert (garden.tree.evictable().bytes, garden.tree.leased_bytes) == (0, 6 * FULL_BYTES)


def test_t6_leased_windows_go_only_as_far_as_asked() -> None:
    garden = Garden()
    old, new = garden.lease("", 0), garden.lease("", 0)
    garden.extend(old, "abc")
    garden.extend(new, "xyz")
    garden.evict(1)
    assert garden.draw() == "abc+1\nXYZ+1"


def test_t6_a_batch_takes_no_more_leased_windows_than_asked() -> None:
    garden = Garden()
    for number in range(40):
        garden.extend(garden.lease("", 0), f"{chr(33 + number)}yz")
    assert garden.tree.evictable().bytes * PASS_SHARE > 3 * SLIDING_BYTES
    assert garden.evict(1) == {"freed": 3 * SLIDING_BYTES, "thinned": 1}


def test_t6_a_lease_whose_window_is_broken_already_keeps_none() -> None:
    garden = Garden()
    garden.say("xyz")
    garden.extend(garden.lease(""), "abcdef", sliding=2)
    assert garden.evict(1) == {"freed": 2 * SLIDING_BYTES, "thinned": 1}
    assert garden.draw() == "abcdef+1\nXYZ*"


def test_t6_more_than_can_go_frees_nothing() -> None:
    garden = Garden()
    garden.say("xyz")
    garden.extend(garden.lease(""), "abcdef")
    before = garden.draw()
    assert garden.evict(garden.tree.evictable().bytes + 1) == {"freed": 0}
    assert garden.evict(0) == garden.evict(-5) == {"freed": 0}
    assert garden.draw() == before


def test_t6_no_orphans_a_leased_leaf_keeps_its_ancestors() -> None:
    garden = Garden()
    garden.say("abc")
    lease = garden.lease("abc")
    garden.extend(lease, "abcdef")
    garden.say("abcxyz")
    garden.evict(garden.tree.evictable().bytes)
    assert garden.draw() == "abc*+1\n  def+1"


def test_t8_memory_pressure_is_shared_by_all_roots() -> None:
    garden = Garden()
    garden.say("abc", root=b"old")
    garden.say("abc", root=b"new")
    garden.evict(1)
    assert garden.tree.match(b"old", b"abcd").tokens == 0
    assert garden.tree.match(b"new", b"abcd").tokens == 3
    assert len([view for view in garden.tree.describe() if view.parent is None]) == 1

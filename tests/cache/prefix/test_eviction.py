"""What goes first (T6). Drawings are explained in garden.py; window 3 unless said otherwise."""

from __future__ import annotations

from sapwood.cache.prefix.eviction import PASS_SHARE
from tests.cache.prefix.garden import Garden, drawing, lines_run
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


def test_t6_then_leaves_and_old_windows_least_recently_used_first() -> None:
    garden = Garden()
    garden.say("abc")
    garden.say("abcdef")
    garden.say("xyz")
    garden.say("abc")
    # Ages: xyz 9, abc 11, abcdef 6.
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
    garden.evict(1)
    assert garden.draw() == "abcdEF\n  GH*", "the end at 8 still reads [4, 8)"
    garden.evict(1)
    assert garden.draw() == "abcdef", "and then nobody reads [4, 6)"


def test_t6_equal_ages_and_depths_go_largest_first() -> None:
    garden = Garden(window=1)
    leases = [garden.lease("", 0) for _ in range(3)]
    for lease, text in zip(leases, ("xya", "xyb", "abc"), strict=True):
        garden.extend(lease, text, sliding=1)
    for lease in leases:
        garden.tree.release(lease, 50)
    garden.now = 50
    assert garden.evict(1) == {"freed": 3 * FULL_BYTES + SLIDING_BYTES, "evicted": 1}
    assert garden.draw() == "xy*\n  A*\n  B*"


def test_t6_equal_ages_go_deepest_first() -> None:
    garden = Garden()
    one, two = garden.lease("", 0), garden.lease("", 0)
    garden.extend(one, "abc")
    garden.extend(two, "wxyz", sliding=3)
    garden.tree.release(one, 50)
    garden.tree.release(two, 50)
    garden.now = 50
    assert garden.evict(1) == {"freed": 4 * FULL_BYTES + 3 * SLIDING_BYTES, "evicted": 1}
    assert garden.draw() == "ABC*"


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


def test_t6_an_unmarked_leaf_that_can_be_restored_keeps_its_age() -> None:
    """In the pass that made it a leaf, and in the next one."""
    for wanted in ([3 * BYTES, 1], [3 * BYTES + 1]):
        garden = Garden(window=6, merge_tokens_max=1)
        lease = garden.lease("")
        garden.extend(lease, "abc")
        garden.extend(lease, "abcdef")
        garden.tree.release(lease, garden.step())
        garden.say("xyz")
        garden.tree.release(garden.lease("ab", 2), garden.step())
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


def test_a_pass_frees_a_batch_so_that_it_is_rarely_needed() -> None:
    garden = Garden()
    texts = [f"{number:03}" for number in range(320)]
    for text in texts:
        garden.say(text)
    evictable = garden.tree.evictable().bytes
    freed = garden.evict(1)["freed"]
    assert evictable * PASS_SHARE <= freed < evictable * PASS_SHARE + 3 * BYTES


def test_work_of_a_pass_is_proportional_to_the_nodes() -> None:
    def work(count: int) -> int:
        garden = Garden()
        for number in range(count):
            garden.say(f"{number:04}xyz")
        per_pass = lines_run(lambda: garden.tree.evict(1, garden.step()))
        return per_pass // garden.tree.nodes

    assert work(800) <= work(100) + 5


def test_a_deep_chain_of_single_tokens_is_no_trouble() -> None:
    """No recursion, and the window does not multiply the work, however small the edges are."""
    garden = Garden(window=1500, nodes_max=10_000, merge_tokens_max=1)
    tokens = (1, 2) * 1000
    lease = garden.lease("")
    for end in range(1, len(tokens) + 1):
        garden.tree.extend(lease, tokens, garden.tracker.log(tokens, end - 1, end), garden.now)
    garden.tree.release(lease, garden.step())
    assert lines_run(lambda: garden.tree.evict(1, garden.step())) < 50 * len(tokens)
    garden.check()

"""What extend does to the tree. Drawings are explained in garden.py."""

from __future__ import annotations

import pytest

from sapwood.cache.prefix.tree import Match
from tests.cache.prefix.garden import Garden, Inserted, drawing, ids
from tests.fakes import FULL_BYTES, SLIDING_BYTES

BYTES = FULL_BYTES + SLIDING_BYTES


def test_t1_a_new_path_becomes_nodes() -> None:
    garden = Garden()
    lease = garden.lease("")
    assert garden.extend(lease, "abcd") == Inserted(4 * BYTES, 4, False)
    assert garden.extend(lease, "abcdef", sliding=1) == Inserted(6 + 10, 2, False)
    assert lease.end == 6
    assert garden.draw() == drawing(
        """
        ABCD+1
          eF+1
        """
    )
    assert (garden.tree.nodes, garden.tree.depth_tokens) == (2, 6)
    assert garden.tree.full_bytes == garden.tree.leased_bytes == 6 * FULL_BYTES
    assert garden.tree.sliding_bytes == garden.tree.evictable().bytes == 5 * SLIDING_BYTES
    assert garden.tree.bytes == 6 * FULL_BYTES + 5 * SLIDING_BYTES


def test_a_prefix_is_matchable_while_its_first_user_lives() -> None:
    garden = Garden()
    garden.extend(garden.lease(""), "abcd")
    assert garden.match("abcde") == Match(4, 4, False)


def test_t5_a_path_that_parts_inside_an_edge_splits_it() -> None:
    """Leases up to the split stay on the upper half: nothing is protected that nobody needs."""
    garden = Garden()
    garden.say("abcdef")
    short, long, parting = (garden.lease("abcdef", end) for end in (2, 5, 3))
    inserted = garden.extend(parting, "abcxy")
    assert inserted == Inserted(2 * BYTES, 2, True)
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
    assert garden.extend(first, "abcd") == Inserted(0, 0, False), "inside the edge: no split"
    assert garden.extend(first, "abcdef") == Inserted(0, 0, False)
    assert garden.extend(second, "abcdef") == Inserted(0, 0, False)
    assert garden.extend(second, "abcdefg", start=2) == Inserted(BYTES, 1, False)
    assert (first.end, second.end) == (6, 7)
    assert garden.tracker.operations == 1, "only what is new was cut off; nothing else was sliced"
    assert garden.draw() == drawing(
        """
        ABCDEF*+2
          G+1
        """
    )


def test_t12_a_duplicate_over_many_nodes_is_not_even_cut() -> None:
    garden = Garden()
    garden.say("abc")
    garden.say("abcdef")
    before = garden.tracker.operations
    assert garden.extend(garden.lease("", 0), "abcdef") == Inserted(0, 0, False)
    assert garden.tracker.operations == before


def test_t12_two_cold_sequences_compute_one_prefix_and_part() -> None:
    """Slices of different sizes end at different places; the tree keeps one copy."""
    garden = Garden()
    one, two = garden.lease(""), garden.lease("")
    garden.extend(one, "abcd")
    garden.extend(two, "ab")
    garden.extend(one, "abcdefgh")
    assert garden.extend(two, "abcdexy") == Inserted(2 * BYTES, 2, True)
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
    assert garden.match("abcdefgh") == Match(6, 6, False)


def test_a_payload_may_lie_inside_what_its_lease_covers() -> None:
    garden = Garden()
    garden.say("abcdef")
    lease = garden.lease("abcdef")
    ages = garden.ages()
    assert garden.extend(lease, "abcd", start=2) == Inserted(0, 0, False)
    assert (lease.end, garden.ages()) == (6, ages), "the frontier is elsewhere"


def test_t10_a_frontier_that_repeats_what_is_here_refreshes_its_node() -> None:
    garden = Garden()
    garden.say("abcdef")
    lease = garden.lease("abcdef", 2)
    garden.extend(lease, "abcd")
    assert garden.ages() == {"-": 1, "f": garden.now}


@pytest.mark.parametrize(
    ("start", "sliding", "split", "drawn"),
    [
        (0, 6, False, "ABCDEF*+1"),
        (0, 2, False, "abcDEF*+1"),
        (2, 4, True, "ab+1\n  CDEF*+1"),
    ],
)
def test_a_thinned_range_that_was_computed_again_is_whole(
    start: int, sliding: int, split: bool, drawn: str
) -> None:
    garden = Garden()
    garden.say("abcdef")
    garden.evict(1)
    assert garden.draw() == "abcDEF*"
    lease = garden.lease("abcdef", start)
    gained = garden.tree.bytes
    inserted = garden.extend(lease, "abcdef", sliding=sliding)
    gained = garden.tree.bytes - gained
    assert inserted == Inserted(gained, 0, split)
    assert garden.draw() == drawing(drawn)


def test_the_middle_of_an_edge_is_renewed_where_paths_now_part() -> None:
    """The third prompt that shares `abcd` finds the window that the second one brought back."""
    garden = Garden(window=3, merge_tokens_max=1)
    garden.say("abcdefgh")
    garden.evict(1)
    assert garden.draw() == "abcdeFGH*"
    assert garden.match("abcdxx") == Match(0, 4, False)
    lease = garden.lease("", 0)
    garden.extend(lease, "ab", sliding=0)
    assert garden.extend(lease, "abcdx", start=1, sliding=4) == Inserted(BYTES + 30, 1, True)
    assert garden.draw() == drawing(
        """
        a+1
          BCD*+1
            eFGH*
            X+1
        """
    )
    assert garden.match("abcdyy") == Match(4, 4, False)


def test_a_slice_that_ends_inside_a_thinned_edge_is_renewed_there() -> None:
    garden = Garden()
    garden.say("abcdefgh")
    garden.evict(1)
    lease = garden.lease("", 0)
    assert garden.extend(lease, "ab") == Inserted(2 * SLIDING_BYTES, 0, True)
    assert garden.extend(lease, "abcd") == Inserted(2 * SLIDING_BYTES, 0, True)
    assert garden.draw() == drawing(
        """
        AB+1
          CD+1
            eFGH*
        """
    )
    assert garden.match("abcdxx") == Match(4, 4, False)
    garden.tree.release(lease, garden.step())
    assert garden.draw() == "ABCD*\n  eFGH*"


def test_renewal_takes_only_the_nodes_that_gain() -> None:
    garden = Garden(window=2, merge_tokens_max=1)
    lease = garden.lease("")
    for text, sliding in [("ab", 0), ("abcd", 2), ("abcdef", 1)]:
        garden.extend(lease, text, sliding=sliding)
    garden.tree.release(lease, garden.step())
    other = garden.lease("", 0)
    assert garden.extend(other, "abcdef", sliding=6) == Inserted(30, 0, False)
    assert garden.draw() == drawing(
        """
        AB+1
          CD+1
            EF*+1
        """
    )


def test_a_lease_that_lands_on_an_end_marks_it() -> None:
    garden = Garden()
    lease = garden.lease("")
    garden.extend(lease, "abc")
    garden.extend(lease, "abcdef")
    garden.lease("abc", 2)
    assert garden.draw() == "ABC+2\n  DEF+1"
    garden.lease("abc", 3)
    assert garden.draw() == "ABC*+3\n  DEF+1"


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
    assert garden.extend(other, "abc", turn_end=True) == Inserted(0, 0, True)
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

"""Pins keep what can be gone on from; a clearing takes the rest, at once or with who holds it."""

from __future__ import annotations

import pytest

from sapwood.cache.prefix.clearing import Swept
from sapwood.cache.prefix.leases import PIN_MARGIN_TOKENS, pin_bytes
from sapwood.cache.prefix.node import Lease
from tests.cache.prefix.garden import ROOT, Garden, drawing, ids
from tests.fakes import FULL_BYTES, SLIDING_BYTES

WINDOW = 3
KEPT = WINDOW + PIN_MARGIN_TOKENS
LONG = tuple(range(60))
BEHIND = 99


def pin(garden: Garden, text: str | tuple[int, ...]) -> Lease:
    lease = garden.tree.pin(ROOT, ids(text), garden.step())
    assert lease is not None
    garden.check()
    return lease


def test_t13_what_is_pinned_outlives_every_eviction_with_its_window() -> None:
    garden = Garden(WINDOW)
    garden.say(LONG)
    lease = pin(garden, LONG)
    garden.say((*LONG, 70, 71))
    garden.say((80, 81, 82))
    assert garden.tree.evict(garden.tree.evictable().bytes, garden.step())
    garden.check()
    assert garden.tree.evictable() == (0, 0)
    assert garden.tree.bytes == 60 * FULL_BYTES + KEPT * SLIDING_BYTES == pin_bytes(lease)
    assert garden.tree.pinned.bytes == pin_bytes(lease)
    for end in (60, 60 - PIN_MARGIN_TOKENS):
        assert garden.match((*LONG[:end], BEHIND)).tokens == end
    assert garden.match((*LONG[: 60 - KEPT], BEHIND)).tokens == 0, "what lies before is not kept"


def test_windows_of_live_leases_go_before_those_of_pins() -> None:
    """T13: also where everything that can go is asked for while somebody lives on the pin."""
    garden = Garden(WINDOW)
    garden.say(LONG)
    pin(garden, LONG)
    lease = garden.lease((*LONG, 70, 71, 72, 73), 60)
    garden.extend(lease, (*LONG, 70, 71, 72, 73))
    garden.tree.evict(garden.tree.evictable().bytes, garden.step())
    garden.check()
    assert garden.match((*LONG, BEHIND)).tokens == 60
    assert garden.match((*LONG, 70, 71, 72, 73, BEHIND)).tokens == 60, "its own window went"


def test_unpinned_it_is_evicted_like_any_other() -> None:
    garden = Garden(WINDOW)
    garden.say(LONG)
    garden.tree.release(pin(garden, LONG), garden.step())
    assert garden.tree.pinned == (0, 0)
    assert garden.tree.evict(garden.tree.evictable().bytes, garden.step())
    assert garden.tree.nodes == 0


def test_two_pins_on_one_path_keep_what_each_needs() -> None:
    garden = Garden(WINDOW)
    garden.say(LONG)
    long, short = pin(garden, LONG), pin(garden, LONG[:50])
    assert pin_bytes(short) == 50 * FULL_BYTES + KEPT * SLIDING_BYTES
    assert garden.tree.pinned.bytes == 60 * FULL_BYTES + (10 + KEPT) * SLIDING_BYTES
    garden.tree.release(long, garden.step())
    garden.check()
    garden.tree.evict(garden.tree.evictable().bytes, garden.step())
    garden.check()
    assert garden.tree.bytes == pin_bytes(short)
    assert garden.match((*LONG[:50], BEHIND)).tokens == 50


@pytest.mark.parametrize("thinned", [False, True])
def test_what_is_not_there_cannot_be_pinned(thinned: bool) -> None:
    garden = Garden(WINDOW)
    lease = garden.lease(LONG, 0)
    garden.extend(lease, LONG, sliding=KEPT - 1 if thinned else None)
    garden.tree.release(lease, garden.step())
    before = list(garden.tree.describe(tokens=True))
    assert garden.tree.pin(ROOT, LONG if thinned else (*LONG, BEHIND), garden.step()) is None
    assert garden.tree.pin(b"another", LONG, garden.now) is None
    assert list(garden.tree.describe(tokens=True)) == before


def test_a_view_tells_requests_from_pins() -> None:
    garden = Garden(WINDOW)
    garden.say("ab")
    pin(garden, "ab")
    lease = garden.lease("abc", 2)
    (node,) = [view for view in garden.tree.describe() if view.parent is not None]
    assert (node.leases, node.pinned) == (1, True)
    assert garden.tree.edges(lease) == [(2, 1)], "a pin reads nothing"


def test_t14_a_clearing_takes_what_nobody_holds_and_says_how_much() -> None:
    garden = Garden(WINDOW)
    garden.say("abcd")
    garden.say("abxy")
    garden.say("pqr")
    assert garden.tree.clear(ids("abc")) == Swept(1, 2 * FULL_BYTES + 2 * SLIDING_BYTES, 0)
    assert garden.draw() == drawing("""
        AB*
          XY*
        PQR*
    """)
    assert garden.tree.clear(ids("abxyz")) == Swept(0, 0, 0), "nothing begins so"
    assert garden.tree.clear().nodes == 3
    assert garden.tree.nodes == garden.tree.bytes == 0
    assert garden.tree.evictions["cleared"] == 4


def test_t14_what_is_held_goes_with_its_last_holder_and_what_he_stored_too() -> None:
    garden = Garden(WINDOW)
    first, second = garden.lease("abcd", 0), garden.lease("abcd", 0)
    garden.extend(first, "abcd", turn_end=True)
    garden.extend(second, "abcd", turn_end=True)
    held = 4 * (FULL_BYTES + SLIDING_BYTES)
    assert garden.tree.clear() == Swept(0, 0, held)
    garden.extend(first, "abcdef", turn_end=True)
    garden.tree.release(first, garden.step())
    garden.check()
    assert garden.draw() == "ABCD*+1"
    garden.tree.release(second, garden.step())
    garden.check()
    assert garden.tree.nodes == 0


def test_t14_who_comes_after_a_clearing_keeps_what_he_uses() -> None:
    garden = Garden(WINDOW)
    old = garden.lease("abcd", 0)
    garden.extend(old, "abcd", turn_end=True)
    garden.extend(old, "abcdef", turn_end=True)
    garden.tree.clear()
    new = garden.lease("abcdxy", 4)
    garden.extend(new, "abcdxy", turn_end=True)
    garden.tree.release(old, garden.step())
    garden.tree.release(new, garden.step())
    assert garden.draw() == drawing("""
        ABCD*
          XY*
    """)


def test_a_cut_leaves_nothing_behind_that_was_cleared() -> None:
    """Its lower half is nobody's: the lease that held the edge ends above it."""
    garden = Garden(WINDOW)
    garden.say("abcdef")
    old = garden.lease("abcx", 3)
    garden.tree.clear()
    garden.extend(old, "abcx")
    new = garden.lease("abc", 3)
    garden.tree.release(old, garden.step())
    garden.tree.release(new, garden.step())
    assert "def" not in garden.draw().lower() and "x" not in garden.draw().lower()


def test_t14_a_clearing_leaves_pins_and_takes_what_lies_below() -> None:
    garden = Garden(WINDOW)
    garden.say("abcd")
    garden.say("abcdef")
    lease = pin(garden, "abcd")
    assert garden.tree.clear().nodes == 1
    assert garden.draw() == "ABCD*+1"[:-2]
    garden.tree.release(lease, garden.step())
    assert garden.tree.clear().nodes == 1


def test_cleared_is_told_from_never_here() -> None:
    """A prompt that asks for it again was computed for the second time, as after an eviction."""
    garden = Garden(WINDOW)
    garden.say("abcd")
    garden.tree.clear()
    assert garden.match("abcd").evicted


def test_t14_who_comes_into_the_middle_of_a_cleared_edge_does_not_keep_the_rest_of_it() -> None:
    garden = Garden(WINDOW)
    garden.say("abcdef")
    old = garden.lease("abcdef", 5)
    garden.tree.clear()
    new = garden.lease("abcx", 3)
    garden.tree.release(old, garden.step())
    assert garden.draw() == "ABCDEF*+1"
    garden.extend(new, "abcx", turn_end=True)
    garden.tree.release(new, garden.step())
    assert "d" not in garden.draw().lower() and "x" in garden.draw().lower()


def test_t14_edges_that_lead_nowhere_else_go_along() -> None:
    """A long prefix is several edges; where a turn ended or paths part it goes on being one."""
    garden = Garden(WINDOW, merge_tokens_max=2)
    lease = garden.lease("abcdefgh", 0)
    for end in (2, 4, 6):
        garden.extend(lease, "abcdefgh"[:end], turn_end=end == 2)
    garden.extend(lease, "abcdefgh", turn_end=True)
    garden.tree.release(lease, garden.step())
    assert garden.tree.nodes == 4
    assert garden.tree.clear(ids("abcdefgh")).nodes == 3
    assert garden.draw() == "AB*"


def test_t14_what_a_cut_has_left_of_a_cleared_edge_goes_with_the_next_clearing() -> None:
    garden = Garden(WINDOW)
    garden.say("abcdef")
    old = garden.lease("abcx", 3)
    garden.tree.clear()
    garden.extend(old, "abcx")
    assert "DEF" in garden.draw(), "he who held the edge still lives"
    assert garden.tree.clear().nodes == 1
    garden.tree.release(old, garden.step())
    assert garden.tree.nodes == 0

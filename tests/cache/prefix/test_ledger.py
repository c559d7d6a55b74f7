"""M1-M3: one account of every byte."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sapwood.cache.prefix.ledger import KINDS, Ledger, LedgerView, OutOfMemory, ReservedKind

AMOUNTS = st.integers(-120, 120)


def test_free_is_the_budget_without_weights_at_first() -> None:
    ledger = Ledger(100, 30)
    assert (ledger.free, ledger.budget_bytes, ledger.weights_bytes) == (70, 100, 30)
    assert ledger.view() == LedgerView(100, 30, live=0, snapshots=0, workspace=0, free=70)


def test_weights_alone_may_fill_the_budget_but_not_exceed_it() -> None:
    assert Ledger(100, 100).free == 0
    with pytest.raises(OutOfMemory, match="weights wants 101 bytes, 100 are free"):
        Ledger(100, 101)
    with pytest.raises(AssertionError):
        Ledger(100, -1)


def test_reserve_and_give_back_move_bytes_between_free_and_a_kind() -> None:
    ledger = Ledger(100, 30)
    ledger.reserve("live", 20)
    ledger.reserve("workspace", 50)
    assert (ledger.free, ledger.held("live"), ledger.held("workspace")) == (0, 20, 50)
    ledger.give_back("workspace", 49)
    assert (ledger.free, ledger.held("live"), ledger.held("workspace")) == (49, 20, 1)


def test_m2_what_does_not_fit_raises_and_changes_nothing() -> None:
    ledger = Ledger(100, 30)
    ledger.reserve("snapshots", 10)
    before = ledger.view()
    with pytest.raises(OutOfMemory, match="live wants 61 bytes, 60 are free") as refused:
        ledger.reserve("live", 61)
    assert (refused.value.wanted, refused.value.free) == (61, 60)
    with pytest.raises(OutOfMemory):
        ledger.adjust("snapshots", 61)
    assert ledger.view() == before


def test_giving_back_what_was_not_reserved_is_our_mistake() -> None:
    ledger = Ledger(100, 30)
    ledger.reserve("live", 5)
    with pytest.raises(AssertionError, match="giving back 6 of 5 bytes of live"):
        ledger.give_back("live", 6)
    with pytest.raises(AssertionError, match="giving back 1 of 0 bytes of workspace"):
        ledger.give_back("workspace", 1)
    with pytest.raises(AssertionError):
        ledger.give_back("live", -1)
    with pytest.raises(AssertionError):
        ledger.reserve("live", -1)


def test_adjust_follows_an_owner_both_ways() -> None:
    ledger = Ledger(100, 30)
    ledger.adjust("snapshots", 40)
    ledger.adjust("snapshots", -15)
    ledger.adjust("snapshots", 0)
    assert (ledger.held("snapshots"), ledger.free) == (25, 45)


def test_m1_check_finds_a_lost_byte_and_a_negative_one() -> None:
    ledger = Ledger(100, 30)
    ledger._free -= 1
    with pytest.raises(AssertionError, match="M1: 99 of"):
        ledger.check()
    ledger._free, ledger._held["live"] = -1, 71
    with pytest.raises(AssertionError, match="M1: negative"):
        ledger.check()


@given(st.lists(st.tuples(st.sampled_from(KINDS), AMOUNTS), max_size=30))
@settings(derandomize=True)
def test_m1_m3_identity_at_every_boundary_and_back_to_the_baseline(
    moves: list[tuple[ReservedKind, int]],
) -> None:
    ledger, held = Ledger(200, 50), dict.fromkeys(KINDS, 0)
    for kind, delta in moves:
        delta = max(delta, -held[kind])
        if delta <= ledger.free:
            ledger.adjust(kind, delta)
            held[kind] += delta
        else:
            with pytest.raises(OutOfMemory):
                ledger.adjust(kind, delta)
        ledger.check()
        view = ledger.view()
        assert {"live": view.live, "snapshots": view.snapshots, "workspace": view.workspace} == held
        assert view.free == 200 - 50 - sum(held.values())
    for kind in KINDS:
        ledger.give_back(kind, held[kind])
    assert ledger.view() == Ledger(200, 50).view()


def test_m3_what_is_still_held_at_the_end_is_a_mistake() -> None:
    ledger = Ledger(100, 30)
    ledger.check_empty()
    ledger.reserve("live", 5)
    with pytest.raises(AssertionError, match="M3"):
        ledger.check_empty()

"""Chances of ends: learned by class, by idling, and with those given up behind them."""

from __future__ import annotations

import pytest

from sapwood.cache.prefix.node import EndKind, Lease, Node
from sapwood.cache.prefix.radix import pack
from sapwood.cache.prefix.tree import Tree
from sapwood.cache.prefix.worth import ReuseRates
from tests.fakes import Tracker

TOP = Node(0, None, pack(()), 0, 0, None, 0)


def end(rates: ReuseRates, kind: EndKind = "prompt") -> Node:
    node = Node(1, TOP, pack((1, 2, 3)), 0, 3, None, 0, end_kind=kind)
    rates.begin(node)
    return node


def idle(rates: ReuseRates, uses: int) -> None:
    for _ in range(uses):
        rates.tick()


def test_what_idles_longer_has_less_of_a_chance() -> None:
    rates = ReuseRates()
    old = end(rates)
    idle(rates, 6)
    new = end(rates)
    assert rates.chance(old) == pytest.approx(rates.chance(new) / 8)  # (2 / 8) ^ 1.5


def test_a_use_makes_it_young_again() -> None:
    rates = ReuseRates()
    node = end(rates)
    fresh = rates.chance(node)
    idle(rates, 6)
    rates.touch(node)
    assert fresh / 2 < rates.chance(node) < fresh, "idling for nothing was learned from"


def test_a_kind_that_is_asked_for_has_more_of_a_chance_than_one_that_never_is() -> None:
    rates = ReuseRates()
    for _ in range(10):
        prompt, reply = end(rates), end(rates, "reply")
        idle(rates, 2)
        rates.hit(Lease(prompt, 3))
        rates.touch(reply)
    assert rates.chance(end(rates)) > 5 * rates.chance(end(rates, "reply"))


def test_a_hit_within_an_edge_is_no_ends() -> None:
    rates = ReuseRates()
    node = end(rates)
    rates.hit(Lease(node, 2))
    assert node.end_hits == 0
    rates.hit(Lease(node, 3))
    assert node.end_hits == 1


def test_idling_counts_once_however_often_one_looks() -> None:
    often, once = ReuseRates(), ReuseRates()
    looked, other = end(often), end(once)
    for _ in range(20):
        idle(often, 1)
        often.expose(looked)
    idle(once, 20)
    once.expose(other)
    assert often.chance(looked) == pytest.approx(once.chance(other))


def test_each_end_that_was_given_up_behind_it_adds_a_tenth() -> None:
    rates = ReuseRates()
    node = end(rates)
    own = rates.chance(node)
    node.given_up = 5
    assert rates.chance(node) == pytest.approx(1.5 * own)


def test_an_end_that_goes_is_given_up_to_the_one_before_it() -> None:
    """Of a long conversation the middle goes; what stays has it in its account."""
    tree, tracker = Tree(3, 1000, merge_tokens_max=1), Tracker()
    tokens = tuple(range(40))
    for now, stop in enumerate(range(4, 40, 4)):
        lease = tree.lease(b"root", tokens, tree.match(b"root", tokens[: stop + 1]).tokens, now)
        if lease.end:
            tree.hit(lease)
        tree.extend(lease, tokens, tracker.log(tokens, lease.end, stop), now, turn_end=True)
        tree.release(lease, now)
    ends = tree.nodes
    while not tree.evictions["evicted"] + sum(node.given_up for node in tree._totals.listed):
        tree.evict(1, 100)
    given_up = sum(node.given_up for node in tree._totals.listed)
    marked = sum(view.marked for view in tree.describe())
    assert given_up == ends - marked > 0

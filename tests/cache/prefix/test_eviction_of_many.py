"""Passes over trees of many nodes, which look at a few for each that goes (T6)."""

from __future__ import annotations

from sapwood.cache.prefix.eviction import PASS_NODES
from sapwood.cache.prefix.tree import Tree
from tests.cache.prefix.garden import Garden, lines_run
from tests.fakes import FULL_BYTES, SLIDING_BYTES, Tracker

BYTES = FULL_BYTES + SLIDING_BYTES


def unlike(count: int) -> Tree:
    """A tree of so many turns that have nothing in common, by age."""
    tree, tracker = Tree(3, nodes_max=10_000), Tracker()
    for number in range(count):
        say(tree, tracker, number)
    return tree


def say(tree: Tree, tracker: Tracker, number: int) -> None:
    """Each in a step of its own."""
    tokens = turn(number)
    lease = tree.lease(b"root", tokens, 0, number)
    tree.extend(lease, tokens, tracker.log(tokens, 0, len(tokens)), number)
    tree.release(lease, number)


def turn(number: int) -> tuple[int, ...]:
    return 10 * number, 10 * number + 1, 10 * number + 2


def test_a_pass_frees_a_batch_so_that_not_every_call_is_one() -> None:
    tree = unlike(320)
    mean = tree.evictable().bytes / tree.nodes
    assert PASS_NODES * mean <= tree.evict(1, 320) < PASS_NODES * mean + 3 * BYTES


def test_work_of_a_pass_does_not_depend_on_the_nodes() -> None:
    def work(count: int) -> int:
        tree = unlike(count)
        tree.evict(1, count)
        return lines_run(lambda: tree.evict(1, count))

    assert work(8000) <= 1.3 * work(400)


def test_of_many_nodes_old_ones_go() -> None:
    """A pass sees a few nodes for each that goes: hardly one of the newer half is among them."""
    tree = unlike(2000)
    for _ in range(100):
        tree.evict(1, 2000)
    ages = [view.age for view in tree.describe() if view.parent is not None]
    gone = 2000 - len(ages)
    assert gone >= 400
    assert sum(age >= 1000 for age in ages) >= 1000 - gone // 20


def test_many_nodes_that_nobody_may_take_but_a_few_are_found() -> None:
    """All but three turns are leased: every node is looked at before leased windows go."""
    garden = Garden()
    for number in range(300):
        text = turn(number)
        garden.say(text) if number % 100 == 50 else garden.extend(garden.lease("", 0), text)
    assert garden.evict(3 * 3 * BYTES) == {"freed": 3 * 3 * BYTES, "evicted": 3}


def test_what_a_pass_remembers_may_change_or_go_before_the_next() -> None:
    tree, tracker = Tree(3, nodes_max=10_000), Tracker()
    for number in range(600):
        say(tree, tracker, number)
        if number > 300:
            tree.evict(1, number)
            tree.check()
    held = [turn(number) for number in range(600) if tree.match(b"root", (*turn(number), 5)).tokens]
    leases = [tree.lease(b"root", tokens, 3, 600) for tokens in held]
    assert tree.evict(1, 600) > 0
    tree.check()
    for lease in leases:
        tree.release(lease, 600)
    assert tree.clear().freed_bytes and not tree.nodes
    say(tree, tracker, 700)
    assert tree.evict(1, 700) > 0


def test_a_deep_chain_of_single_tokens_is_no_trouble() -> None:
    """No recursion, however small the edges are; what is looked at is a few windows of nodes."""
    garden = Garden(window=1500, nodes_max=10_000, merge_tokens_max=1)
    tokens = (1, 2) * 1000
    lease = garden.lease("")
    for end in range(1, len(tokens) + 1):
        garden.tree.extend(lease, tokens, garden.tracker.log(tokens, end - 1, end), garden.now)
    garden.tree.release(lease, garden.step())
    assert lines_run(lambda: garden.tree.evict(1, garden.step())) < 1000 * len(tokens)
    garden.check()

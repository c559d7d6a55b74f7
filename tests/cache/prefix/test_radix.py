"""Edges, and the moves that change the tree's shape."""

from __future__ import annotations

from array import array
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sapwood.cache.prefix.radix import attach, common, descend, detach, merge, pack, split
from tests.cache.prefix.garden import Garden, drawing, ids, lines_run
from tests.fakes import OutOfDeviceMemory

TOKENS = st.lists(st.integers(0, 2), max_size=40).map(tuple)


@given(TOKENS, TOKENS, st.data())
@settings(derandomize=True)
def test_common_counts_the_tokens_that_agree(
    edge: tuple[int, ...], tokens: tuple[int, ...], data: st.DataObject
) -> None:
    offset = data.draw(st.integers(0, len(edge)))
    at = data.draw(st.integers(0, len(tokens)))
    stop = data.draw(st.integers(at, len(tokens)))
    expected = 0
    for ours, theirs in zip(edge[offset:], tokens[at:stop], strict=False):
        if ours != theirs:
            break
        expected += 1
    assert common(pack(edge), offset, tokens, at, stop) == expected


@pytest.mark.parametrize("differs_at", [0, 1, 131_071, 262_142, 262_143, None])
def test_common_runs_no_loop_over_tokens(differs_at: int | None) -> None:
    """A mismatch in a prompt of full length is found in about 18 halvings."""
    edge = pack(range(262_144))
    tokens = array("i", edge)
    if differs_at is not None:
        tokens[differs_at] = -1
    found: list[int] = []
    work = lines_run(lambda: found.append(common(edge, 0, tokens, 0, len(tokens))))
    assert found == [262_144 if differs_at is None else differs_at]
    assert work < 120


def test_match_of_a_long_prompt_costs_by_node_not_by_token() -> None:
    tokens = tuple(range(50_000))
    garden = Garden(window=512, merge_tokens_max=1)
    lease = garden.tree.lease(b"", (), 0, 0)
    work = []
    for end in range(500, 50_001, 500):
        log = garden.tracker.log(tokens, end - 500, end)
        work.append(lines_run(partial(garden.tree.extend, lease, tokens, log, 0)))
    assert len(set(work)) == 1, "each slice of a prefill costs the same"
    assert garden.tree.nodes == 100
    assert lines_run(lambda: garden.tree.match(b"", tokens)) < 100 * 25


def test_pack_keeps_what_is_packed() -> None:
    edge = pack((1, 2))
    assert pack(edge) is edge
    assert edge.itemsize == 4


def test_t1_descending_from_outside_a_node_is_refused() -> None:
    garden = Garden()
    garden.say("abcdef")
    (top,) = garden.tree._roots.values()
    with pytest.raises(AssertionError, match=r"1 is outside node \d+ \[0, 0\)"):
        descend(top, ids("abc"), 1, 3)


def test_t4_merge_of_a_split_is_the_node_again() -> None:
    """Through the tree: tokens, bytes and mark are as before, wherever it was cut."""
    garden = Garden()
    garden.say("abcdefgh")
    before = list(garden.tree.describe(tokens=True))
    for at in range(1, 8):
        lease = garden.lease("abcdefgh", at)
        garden.extend(lease, "abcdefgh"[:at], start=0, turn_end=True)
        upper = lease.node
        garden.tree.release(lease, garden.step())
        assert garden.tree.nodes == 2, "a marked end does not merge"
        upper.marked = False
        garden.say("abcdefgh")
        (_, node) = garden.tree.describe(tokens=True)
        assert (node.tokens, node.marked) == (before[1].tokens, True)
        assert node.full_bytes == before[1].full_bytes
        assert node.sliding_bytes == before[1].sliding_bytes
    assert (garden.tree.splits, garden.tree.merges) == (7, 7)


@pytest.mark.parametrize("leased", [False, True])
@pytest.mark.parametrize("at", range(4, 8))
def test_t4_split_and_merge_keep_leases_hits_age_and_identity(at: int, leased: bool) -> None:
    """By themselves: nobody looks at the node in between, so nothing of it may change."""
    garden = Garden()
    garden.say("abcxy")
    garden.say("abcdefgh")
    lease = garden.lease("abcdefgh")
    garden.tree.hit(lease)
    node, totals = lease.node, garden.tree._totals
    if not leased:
        garden.tree.release(lease, garden.step())
    garden.step()
    before = list(garden.tree.describe(tokens=True))
    assert node.hits == 1
    merge(split(node, at, totals), node, totals)
    assert list(garden.tree.describe(tokens=True)) == before
    assert node.landed == ({lease} if leased else set())
    garden.check()


@pytest.mark.parametrize("at", [0, 4])
def test_t4_a_split_at_an_end_is_refused(at: int) -> None:
    garden = Garden()
    garden.say("abcd")
    node = garden.lease("abcd").node
    with pytest.raises(AssertionError, match=rf"cannot split node \d+ \[0, 4\) at {at}"):
        split(node, at, garden.tree._totals)


def test_moves_on_nodes_in_use_are_refused() -> None:
    garden = Garden()
    garden.say("abcd")
    garden.say("abxy")
    lease = garden.lease("abcd")
    totals, parent = garden.tree._totals, lease.node.above
    log = garden.tracker.log(ids("abcdz"), 4, 5)
    with pytest.raises(AssertionError, match="is in use"):
        detach(lease.node, totals)
    with pytest.raises(AssertionError, match="is in use"):
        detach(parent, totals)
    with pytest.raises(AssertionError, match="cannot merge"):
        merge(parent, lease.node, totals)
    with pytest.raises(AssertionError, match=r"\[4, 5\) with 1 tokens under node \d+ \[0, 2\)"):
        attach(parent, pack(ids("z")), log, 0, totals)
    with pytest.raises(AssertionError, match=r"\[4, 5\) with 0 tokens under"):
        attach(lease.node, pack(()), log, 0, totals)
    log.close()
    log = garden.tracker.log(ids("abcd"), 2, 4)
    with pytest.raises(AssertionError, match="has a child for 2 already"):
        attach(parent, pack(ids("cd")), log, 0, totals)
    log.close()
    with pytest.raises(AssertionError, match="stores nothing"):
        _ = parent.above.stored
    with pytest.raises(AssertionError, match="has no parent"):
        _ = parent.above.above
    garden.check()


@pytest.mark.parametrize(
    ("failing", "drawn"),
    [
        ("split", "ABCDEF*"),
        ("merge", "ABC\n  DEF*"),
        ("thin", "ABCDEF*"),
    ],
)
def test_m2_a_payload_operation_that_raises_moves_nothing(failing: str, drawn: str) -> None:
    garden = Garden(merge_tokens_max=2 if failing == "thin" else 100)
    lease = garden.lease("")
    if failing == "merge":
        garden.extend(lease, "abc")
    garden.extend(lease, "abcdef")
    if failing != "merge":
        garden.tree.release(lease, garden.step())
    garden.tracker.operations_until_failure = 0
    handed = garden.tracker.log(ids("abcxyz"), 3, 6)

    def fail() -> None:
        if failing == "split":
            garden.tree.extend(garden.lease("abc"), ids("abcxyz"), handed, garden.step())
        elif failing == "merge":
            garden.tree.release(lease, garden.step())
        else:
            garden.evict(1)

    with pytest.raises(OutOfDeviceMemory):
        fail()
    handed.close()
    assert garden.draw().replace("+1", "") == drawing(drawn)

"""Traces are drawn by seeds alone, and each policy keeps and finds what it says it does."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

import pytest

from bench.replay.clairvoyant import Clairvoyant
from bench.replay.filled import TREE_WORK, FilledTree, work_s
from bench.replay.kinds import TRACE_KINDS
from bench.replay.others import EdgeLRU, InfiniteCache, PromptCacheLRU, StrideLRU
from bench.replay.ours import ProductionTree
from bench.replay.payload import WeightlessPayload
from bench.replay.trace import TRACE_SHAPE, CachePolicy, KVShape, TraceRequest, replay
from bench.traces import OTHERS, POLICIES, kind_figure
from tests.fakes import FULL_BYTES, SLIDING_BYTES, Tracker

SHAPE = KVShape(full_bytes=1, sliding_bytes=10, window=4)
SCALE, TIGHT_BYTES = 0.25, 1 << 30

# The first ten tokens of three paths that agree in nothing.
A, B, C = (range(first, first + 10) for first in (100, 200, 300))

Bounded = Callable[[int, Sequence[TraceRequest]], CachePolicy]
BOUNDED: dict[str, Bounded] = {
    "edges": lambda budget, _: EdgeLRU(TRACE_SHAPE, budget),
    "strides": lambda budget, _: StrideLRU(TRACE_SHAPE, budget),
    "prompt_caches": lambda budget, _: PromptCacheLRU(TRACE_SHAPE, budget),
    "ours": lambda budget, _: ProductionTree(TRACE_SHAPE, budget),
    "clairvoyant": lambda budget, trace: Clairvoyant(TRACE_SHAPE, budget, trace),
}


def asks(*parts: Sequence[int], system: int = 0) -> TraceRequest:
    """A prompt whose reply, of one token, leaves nothing."""
    return TraceRequest(
        array("i", [token for part in parts for token in part]), array("i", [1]), system
    )


def found(policy: CachePolicy, *requests: TraceRequest) -> list[int]:
    return [policy.serve(request) for request in requests]


def test_the_shape_is_that_of_the_released_model() -> None:
    shape = TRACE_SHAPE
    assert (shape.full_bytes, shape.sliding_bytes, shape.window) == (20_480, 204_800, 1024)


@pytest.mark.parametrize("kind", TRACE_KINDS)
def test_a_seed_draws_one_trace(kind: str) -> None:
    draw = TRACE_KINDS[kind]
    assert draw(3, SCALE) == draw(3, SCALE) != draw(4, SCALE)


@pytest.mark.parametrize("kind", TRACE_KINDS)
def test_nobody_finds_more_than_there_was_or_keeps_more_than_may_be(kind: str) -> None:
    trace = TRACE_KINDS[kind](0, SCALE)
    infinite = found(InfiniteCache(TRACE_SHAPE), *trace)
    for name, make in BOUNDED.items():
        policy = make(TIGHT_BYTES, trace)
        for request, most in zip(trace, infinite, strict=True):
            assert policy.serve(request) <= most, name
            assert policy.held_bytes <= TIGHT_BYTES, name


@pytest.mark.parametrize("kind", TRACE_KINDS)
def test_nobody_is_better_than_who_knows_the_future(kind: str) -> None:
    trace = TRACE_KINDS[kind](1, SCALE)
    shares = {name: replay(make(TIGHT_BYTES, trace), trace) for name, make in BOUNDED.items()}
    assert min(shares, key=lambda name: shares[name]) == "clairvoyant", shares


@pytest.mark.parametrize("kind", TRACE_KINDS)
@pytest.mark.parametrize("name", ["ours", "edges", "clairvoyant"])
def test_with_room_for_all_nothing_is_lost(kind: str, name: str) -> None:
    trace = TRACE_KINDS[kind](2, SCALE)
    assert found(BOUNDED[name](1 << 50, trace), *trace) == found(InfiniteCache(TRACE_SHAPE), *trace)


def test_one_token_is_always_computed() -> None:
    again = [asks(A), asks(A)]
    everyone: list[CachePolicy] = [
        InfiniteCache(SHAPE),
        EdgeLRU(SHAPE, 1000),
        ProductionTree(SHAPE, 1000),
        Clairvoyant(SHAPE, 1000, again),
    ]
    assert [found(policy, *again) for policy in everyone] == [[0, 9]] * 4
    assert replay(InfiniteCache(SHAPE), again) == 11 / 20


def test_a_reply_is_found_but_for_its_last_token() -> None:
    answered = TraceRequest(array("i", A), array("i", B))
    assert found(InfiniteCache(SHAPE), answered, asks(A, B, C)) == [0, 19]


def test_the_edge_used_least_recently_goes_first() -> None:
    """Room for 21 tokens of 11 bytes: A and B fit, then C takes the place of B."""
    policy = EdgeLRU(SHAPE, 21 * 11)
    assert found(policy, asks(A), asks(B), asks(A), asks(C), asks(A), asks(B)) == [0, 0, 9, 0, 9, 0]


def test_strides_are_found_at_their_states() -> None:
    policy = StrideLRU(SHAPE, 1000, stride_tokens=4)
    assert found(policy, asks(A), asks(A[:9], B), asks(A[:7], C), asks(A, B)) == [0, 8, 4, 10]


def test_a_state_weighs_a_window_and_shares_its_full_kv() -> None:
    policy = StrideLRU(SHAPE, 1000, stride_tokens=4)
    found(policy, asks(A))
    assert policy.held_bytes == 10 + 3 * 4 * 10
    tight = StrideLRU(SHAPE, 10 + 2 * 4 * 10, stride_tokens=4)
    assert found(tight, asks(A), asks(A[:7], B)) == [0, 4], "of like age the longest goes first"


def test_a_state_that_is_found_is_young_again() -> None:
    """Room for three states. The fourth takes the place of B's, which was stored after A's."""
    policy = StrideLRU(SHAPE, 141, stride_tokens=100)
    assert found(policy, asks(A), asks(B), asks(A, [7]), asks(C)) == [0, 0, 10, 0]
    assert found(policy, asks(A, [8])) == [10]


def test_a_prompt_cache_past_the_window_is_all_or_nothing() -> None:
    policy = PromptCacheLRU(SHAPE, 1000)
    assert found(policy, asks(A), asks(A, B), asks(A[:9], C)) == [0, 10, 0]
    assert found(policy, asks(C[:3]), asks(C[:2], B)) == [0, 2], "within it, it is cut"


def test_a_system_prompt_is_a_prompt_cache_of_its_own() -> None:
    policy = PromptCacheLRU(SHAPE, 1000)
    assert found(policy, asks(A, B, system=10), asks(A, C, system=10)) == [0, 10]


def test_replies_go_before_what_users_wrote() -> None:
    """An entry is 50 bytes or 60, and a turn leaves two: of the prompt, of the reply."""
    first = TraceRequest(array("i", A), array("i", B))
    second = TraceRequest(array("i", C), array("i", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]))
    policy = PromptCacheLRU(SHAPE, 50 + 59 + 50 + 59)
    assert found(policy, first, second) == [0, 0]
    assert found(policy, asks(A, [7]), asks(A, B[:9], [7])) == [10, 10]


def test_the_clairvoyant_keeps_what_is_asked_for_next() -> None:
    """Room for ten tokens of full K/V and a window, so for one path of the three."""
    trace = [asks(A), asks(B), asks(C), asks(A, [7]), asks(C, [7])]
    assert found(Clairvoyant(SHAPE, 50, trace), *trace) == [0, 0, 0, 10, 0]
    assert found(Clairvoyant(SHAPE, 100, trace), *trace) == [0, 0, 0, 10, 10]


def test_the_clairvoyant_needs_a_window_for_a_hit() -> None:
    """A hit at five takes five tokens of full K/V and four of sliding: 45 bytes. One at one, 11."""
    trace = [asks(A), asks(A[:5], B)]
    assert found(Clairvoyant(SHAPE, 45, trace), *trace) == [0, 5]
    assert found(Clairvoyant(SHAPE, 44, trace), *trace) == [0, 1]


def test_the_clairvoyant_finds_nothing_where_the_window_went() -> None:
    """Room for what the second one needs: twenty of full K/V and the last window. Not for both."""
    trace = [asks(A, B), asks(A, B, [7]), asks(A[:8], C)]
    assert found(Clairvoyant(SHAPE, 60, trace), *trace) == [0, 20, 0]
    assert found(Clairvoyant(SHAPE, 100, trace), *trace) == [0, 20, 8]


def test_a_weightless_payload_weighs_what_one_with_kv_does() -> None:
    shape, tracker = KVShape(FULL_BYTES, SLIDING_BYTES, 4), Tracker()
    log, weightless = tracker.log(range(20), 2, 20, 7), WeightlessPayload(shape, 2, 20, 7)
    for at in (5, 7, 12):
        halves = tracker.log(range(20), 2, 20, 7).split(at)
        assert list(map(_told, weightless.split(at))) == list(map(_told, halves))
    (left, right), (upper, lower) = weightless.split(12), log.split(12)
    assert _told(left.merge(right.thin(15))) == _told(upper.merge(lower.thin(15)))


def _told(payload: object) -> list[int]:
    names = ("start", "end", "sliding_start", "full_bytes", "sliding_bytes")
    return [getattr(payload, name) for name in names]


def test_a_figure_is_what_is_left_of_the_best_others_gap() -> None:
    run = dict.fromkeys(POLICIES, 0.9) | {"clairvoyant": 0.1, "ours": 0.2, "strides": 0.5}
    figure = kind_figure("rag", [run, run | {"edges": 0.3}])
    assert figure.ratios == pytest.approx([0.1 / 0.4, 0.1 / 0.2])
    assert figure.met and figure.details["edges"] == pytest.approx(0.6)
    level = kind_figure("rag", [run | dict.fromkeys(OTHERS, 0.1)])
    assert level.ratios == pytest.approx([100]), "no gap, nothing to divide by"


@pytest.mark.parametrize("work", TREE_WORK)
def test_a_tree_has_its_size_again_after_each_pass(work: str) -> None:
    tree = FilledTree(200)
    assert tree.nodes in (200, 201), "a leaf that makes an inner node is two"
    assert work_s(tree, work, 3) > 0
    assert 200 <= tree.nodes <= 210

"""Routers go by their rules, workers share their time, and the page has the figures of the data."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from random import Random

import pytest

from bench import fleet
from bench.replay.kinds import TRACE_KINDS
from bench.replay.many import (
    REPLY_TOKEN_WORK,
    WORKER_BUDGET_BYTES,
    _Worker,
    groups_of,
    router_named,
    simulate,
)
from bench.replay.ours import ProductionTree
from bench.replay.routing import EventRouter, RingRouter, spills
from bench.replay.trace import TRACE_SHAPE, TraceRequest, replay
from sapwood.cache.prefix.describe import EdgeView
from sapwood.daemon.gateway.blocks import BLOCK, BlockIndex

WINDOW = TRACE_SHAPE.window
PROMPT = array("i", range(10 * BLOCK))
IDLE = [0, 0, 0]


def tells(router: EventRouter, worker: int, *held: Sequence[int]) -> BlockIndex:
    """A worker whose tree has these prefixes, each whole and by itself."""
    index = BlockIndex(WINDOW)
    edges = [
        EdgeView(id, None, 0, len(tokens), 0, array("i", tokens)) for id, tokens in enumerate(held)
    ]
    router.hear(worker, index.update(edges))
    return index


def events() -> EventRouter:
    return EventRouter(len(IDLE), Random(0))


def test_a_prompt_goes_where_most_of_its_beginning_is() -> None:
    router = events()
    tells(router, 1, PROMPT[: 5 * BLOCK], range(1000, 1000 + BLOCK))
    index = tells(router, 2, PROMPT[: 6 * BLOCK])
    assert router.choose(0, PROMPT, IDLE) == 2
    assert router.choose(0, PROMPT[: 6 * BLOCK - 1], [0, 1, 0]) == 2, "equal, and 1 is busier"
    router.hear(2, index.update([]))
    assert router.choose(0, PROMPT, IDLE) == 1, "what was evicted is forgotten"


def test_what_nobody_has_goes_to_who_has_least_to_do() -> None:
    router = events()
    tells(router, 2, PROMPT)
    assert router.choose(0, array("i", range(5000, 5100)), [2, 1, 0]) == 2
    assert router.choose(0, array("i", range(5000, 5100)), [1, 0, 0]) == 1, "2 has served one"
    assert router.choose(0, PROMPT[: BLOCK - 1], [0, 1, 1]) == 0, "not a block long"


def test_a_prefix_does_not_count_where_its_holder_is_far_busier() -> None:
    router = events()
    tells(router, 2, PROMPT)
    assert router.choose(0, PROMPT, [0, 0, 5]) == 2
    assert router.choose(0, PROMPT, [0, 0, 9]) == 0
    assert not spills(6, [0, 0, 6]) and spills(7, [0, 0, 7]), "by more than 4 above the mean"
    assert not spills(140, [100, 100, 140]), "nor by less than half"


def test_a_client_keeps_its_place_on_the_ring() -> None:
    few, more = (RingRouter(workers, Random(0)) for workers in (8, 9))
    places = [few.choose(key, PROMPT, []) for key in range(900)]
    assert places == [few.choose(key, array("i"), [9] * 8) for key in range(900)]
    moved = sum(few.choose(key, PROMPT, []) != more.choose(key, PROMPT, []) for key in range(900))
    assert 50 < moved < 200, "a ninth of them"
    assert max(places.count(worker) for worker in range(8)) < 2 * 900 / 8


def test_requests_share_a_worker() -> None:
    worker = _Worker(WORKER_BUDGET_BYTES)
    worker.begin(0.0, 10.0, 1)
    worker.begin(0.0, 20.0, 2)
    assert worker.ends_at == 20.0 and worker.end(20.0) == 1
    worker.begin(25.0, 2.0, 3)
    assert worker.ends_at == 29.0 and worker.end(29.0) == 3
    assert worker.ends_at == 32.0 and worker.end(32.0) == 2
    assert worker.work == 32.0 and worker.ends_at == float("inf")


def test_one_group_by_events_finds_what_it_finds_on_one_daemon() -> None:
    group = groups_of(1, 0, 0.1, 0)[0]
    alone = ProductionTree(TRACE_SHAPE, WORKER_BUDGET_BYTES)
    outcome = simulate(router_named("events", 4, 0), [group], 4)
    assert outcome.share == pytest.approx(replay(alone, group.requests))
    assert sorted(outcome.work)[:3] == [0.0] * 3 and outcome.imbalance == 4.0
    replies = sum(len(request.reply) for request in group.requests)
    assert sum(outcome.work) == sum(outcome.computed.values()) + REPLY_TOKEN_WORK * replies


def test_random_finds_less() -> None:
    groups = [group for group in groups_of(2, 0, 0.1, 100) if group.kind in ("edits", "branches")]
    shares = {name: simulate(router_named(name, 4, 0), groups, 4).share for name in fleet.TITLES}
    assert shares["events"] < 0.75 * shares["random"], shares
    again = simulate(router_named("random", 4, 0), groups, 4).share
    assert again == shares["random"], "the same seed, the same figures"


def test_groups_have_in_common_what_is_said_and_no_more() -> None:
    groups = groups_of(2, 3, 0.1, 50)
    assert sorted(group.kind for group in groups) == sorted([*TRACE_KINDS] * 2)
    assert {tuple(request.prompt[:50]) for each in groups for request in each.requests} == {
        tuple(range(1, 51))
    }
    ids = [{id for request in group.requests for id in own(request)} for group in groups]
    assert sum(map(len, ids)) == len(set[int]().union(*ids))


def own(request: TraceRequest) -> array[int]:
    return request.prompt[50:] + request.reply


def test_the_page_has_the_figures_of_the_data() -> None:
    found = json.loads(fleet.FLEET_DATA.read_text())
    page = fleet.FLEET_PAGE.read_text()
    assert fleet.with_table(page, found) == page
    assert {row["workers"] for row in found} == set(fleet.WORKERS)

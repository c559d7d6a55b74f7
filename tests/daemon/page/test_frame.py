"""What the page is told, of snapshots that are made up: rates, shares, rows, and no text."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from sapwood.cache.prefix.sketch import Sketch, SketchNode
from sapwood.daemon.engine.account import memory_use
from sapwood.daemon.engine.engine import Published
from sapwood.daemon.engine.loaded import Glance, TreeGlance
from sapwood.daemon.engine.step_clock import StepTimes
from sapwood.daemon.page.frame import (
    COLUMNS,
    Point,
    Snapshot,
    StreamRow,
    point,
    told_first,
    told_now,
    told_tree,
)
from sapwood.scheduler.histogram import HistogramView
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.stats import Stats
from sapwood.scheduler.stream_view import StreamView
from tests.scheduler.house import House

STREAM = StreamView(7, "decode", 2, 100, 60, 100, 10, 300, 5, 20, 15, 0, 3.04)


def stats(**counts: Any) -> Stats:
    return replace(House().core.stats(), **counts)


def snapshot(at: float, *streams: StreamView, **counts: Any) -> Snapshot:
    found = stats(**counts)
    published = Published(found, {}, memory_use(found, 0, 5, 7), ())
    return Snapshot(at, "serving", at, 0.0, 2, published, Glance(streams))


def streams_of(told: dict[str, Any]) -> list[StreamRow]:
    return [StreamRow(*row) for row in json.loads(json.dumps(told["streams"]))]


def test_speeds_and_shares_are_differences_of_two_snapshots() -> None:
    rounds = HistogramView((1.0,), (4, 0), 0.0)
    before = snapshot(10.0, generated_tokens=100, prompt_tokens=50, prefix_cached_tokens=50)
    now = snapshot(
        12.0,
        generated_tokens=150,
        prompt_tokens=90,
        prefix_cached_tokens=80,
        draft_tokens=(6, 2),
        accepted_tokens=(5, 1),
        draft_depth=rounds,
    )
    assert told_now(before, before, now)["rates"] == {
        "tokens_s": 25.0,
        "prompt_s": 20.0,
        "cached": 0.75,
        "accepted": 0.75,
        "depth": 2.0,
    }
    assert point(before, now) == Point(12.0, 2.0, 25.0, 0.75)


def test_of_nothing_there_is_no_share_and_of_one_snapshot_no_speed() -> None:
    now = snapshot(12.0)
    assert set(told_now(None, None, now)["rates"].values()) == {None}
    shares = told_now(snapshot(11.0), snapshot(11.0), now)["rates"]
    assert shares == {
        "tokens_s": 0.0,
        "prompt_s": 0.0,
        "cached": None,
        "accepted": None,
        "depth": None,
    }
    assert point(None, now) is None


def test_while_the_model_is_loaded_only_that_is_told() -> None:
    loading = Snapshot(5.0, "loading", 1.0, 0.0, 0, None, None)
    assert told_now(None, None, loading) == {
        "at": 5.0,
        "state": "loading",
        "uptime_s": 1.0,
        "quiet_s": 0.0,
    }
    assert point(loading, snapshot(6.0)) is None
    assert told_first(None, Limits(), ())["model"] is None


def test_memory_sums_to_the_budget_and_requests_before_the_queue_wait_too() -> None:
    told = told_now(None, None, snapshot(1.0, requests_waiting=3))
    memory = told["memory"]
    assert sum(size for _, size in memory["kinds"]) == memory["budget"] > 7
    assert told["counts"]["waiting"] == 5


def test_a_stream_says_what_it_did_since() -> None:
    later = STREAM._replace(
        emitted_tokens=22, decode_steps=9, draft_tokens=32, accepted_tokens=24, age_s=5.04
    )
    others = later._replace(id=8, age_s=1.1), later._replace(id=9, slot=-1, age_s=2.1)
    before, now = snapshot(1.0, STREAM), snapshot(3.0, later, *others)
    known, fresh, odd = streams_of(told_now(before, before, now))
    assert (known.tokens_s, known.depth, known.accepted) == (6.0, 3.0, 0.75)
    assert (known.slot, known.cached, known.emitted, known.age_s) == (2, 60, 22, 5.0)
    assert (fresh.tokens_s, fresh.depth, fresh.accepted) == (20.0, 3.556, 0.75), "since it came"
    assert (odd.tokens_s, odd.depth, odd.accepted, odd.slot) == (None, None, None, -1)


def test_a_stream_that_drafts_nothing_has_a_depth_and_no_share() -> None:
    later = STREAM._replace(decode_steps=8, emitted_tokens=13)
    before = snapshot(1.0, STREAM)
    (row,) = streams_of(told_now(before, before, snapshot(2.0, later)))
    assert (row.depth, row.accepted) == (0.0, None)


def test_steps_lie_before_the_end_of_the_newest() -> None:
    steps = tuple(
        StepTimes(n, 100.0 + 0.1 * n, 0.001, 0.002, 0.01, 0.02, 0.003, 4, 8, 0) for n in (1, 2)
    )
    now = snapshot(1.0)
    assert now.published is not None
    told = told_now(None, None, replace(now, published=replace(now.published, steps=steps)))
    first, last = (dict(zip(COLUMNS["steps"], row, strict=True)) for row in told["steps"])
    assert last["begun"] == pytest.approx(-36.0) and first["begun"] == pytest.approx(-136.0)
    parts = ("plan", "emit", "draft", "target", "commit")
    assert [last[part] for part in parts] == pytest.approx([1.0, 2.0, 10.0, 20.0, 3.0])
    assert (last["number"], last["rows"], last["drafted"], last["read"]) == (2, 4, 8, 0)


def test_a_node_says_who_reads_it_and_what_of_it_is_on_disk() -> None:
    nodes = (
        SketchNode(0, None, 0, 0, 0, 0, 90, 2, False, 0, 5, 0),
        SketchNode(3, 0, 0, 8, 50, 20, 90, 2, True, 95, 5, 4),
    )
    tree = TreeGlance(100, Sketch(nodes, 9, 12), {3: 2, 99: 1}, {3: {"full": 4, "sliding": 1}})
    told = json.loads(json.dumps(told_tree(tree)))
    root, node = (dict(zip(COLUMNS["nodes"], row, strict=True)) for row in told["nodes"])
    assert (told["seen"], told["total"]) == (9, 12)
    assert root["parent"] is None and root["readers"] == root["disk"] == 0
    assert (node["readers"], node["disk"], node["age"], node["hidden"]) == (2, 5, 5, 4)
    assert node["pinned"] is True and node["below"] == 90


def test_a_node_that_was_used_since_the_last_step_is_not_younger_than_now() -> None:
    node = SketchNode(3, 0, 0, 8, 50, 20, 90, 2, True, 101, 5, 4)
    (row,) = told_tree(TreeGlance(100, Sketch((node,)), {}, {}))["nodes"]
    assert row.age == 0


def test_all_that_is_told_of_requests_are_numbers() -> None:
    """But for a state, of which there are few."""
    row = streams_of(told_now(None, None, snapshot(1.0, STREAM)))[0]
    texts = [value for value in row if isinstance(value, str)]
    assert texts == ["decode"]

"""The published counts against what every client saw."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapwood.scheduler.core.meters import RECOMPUTE_CAUSES
from sapwood.scheduler.events import Finished, Usage
from sapwood.scheduler.histogram import Histogram
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.outcomes import Outcome
from sapwood.scheduler.stats import Stats
from tests.scheduler.fake_device import toy_facts
from tests.scheduler.house import House, Stream, prompt


def busy_house() -> House:
    house = House(limits=Limits(slots_max=3, prefill_tokens_max=32, queued_max=8), quality=0.7)
    for seed in range(9):
        house.submit(prompt(20) + prompt(10 + seed, seed), 5 + 3 * seed, ignore_eos=seed % 2 == 0)
    return house


def usages(house: House) -> list[Usage]:
    return [s.end.usage for s in house.streams.values() if isinstance(s.end, Finished)]


def test_the_counters_are_the_sum_of_the_clients() -> None:
    """What a scrape says and what the clients add up to are the same numbers, exactly."""
    house = busy_house()
    house.run()
    stats, seen = house.core.stats(), usages(house)
    assert len(seen) == sum(stats.requests.values()) - stats.requests[Outcome.REJECTED] == 8
    assert stats.prompt_tokens == sum(u.prompt_tokens for u in seen)
    assert stats.prefix_cached_tokens == sum(u.cached_tokens for u in seen)
    assert stats.generated_tokens == sum(u.completion_tokens for u in seen)
    assert stats.draft_rounds == sum(u.rounds for u in seen)
    assert sum(stats.draft_tokens) == sum(u.draft_tokens for u in seen)
    assert sum(stats.accepted_tokens) == sum(u.accepted_tokens for u in seen) > 0
    recomputed = sum(stats.prefix_recomputed_tokens.values())
    assert stats.prefix_cached_tokens + recomputed == stats.prompt_tokens
    assert stats.time_to_first_token.count == stats.request_decode.count == len(seen)
    assert stats.request_queue.total == pytest.approx(sum(u.queue_seconds for u in seen))
    assert stats.request_prefill.total == pytest.approx(sum(u.prefill_seconds for u in seen))
    assert stats.request_decode.total == pytest.approx(sum(u.decode_seconds for u in seen))
    assert stats.request_duration.total == pytest.approx(
        stats.request_queue.total + stats.request_prefill.total + stats.request_decode.total
    )
    later = stats.inter_token_latency
    assert later.count == stats.generated_tokens - len(seen)
    assert later.total == pytest.approx(stats.request_decode.total)
    assert stats.draft_depth.count == sum(u.decode_steps for u in seen)
    house.close()


def test_counters_never_fall_and_agree_at_every_step() -> None:
    """They move at commit: before a delta is handed out its tokens are counted."""
    house = busy_house()
    house.cancel(house.streams[3])
    before = house.core.stats()
    for step in range(200):
        if step == 1:
            house.cancel(house.streams[1])
        house.step()
        stats = house.core.stats()
        house.deliver()
        assert stats.generated_tokens == sum(len(s.tokens) for s in house.streams.values())
        for name in ("prompt_tokens", "generated_tokens", "prefix_cached_tokens", "draft_rounds"):
            assert getattr(stats, name) >= getattr(before, name)
        assert stats.memory == house.ledger.view()
        assert stats.requests_running <= 3
        before = stats
    assert before.requests[Outcome.CANCELLED] == 2
    house.close()


def test_buffers_are_those_of_weights_slots_and_tree_on_every_device() -> None:
    """Also where nobody bounds them, so that an operator sees what Metal would hold."""
    facts = replace(toy_facts(), weights_buffers=2, live_buffers=4)
    house = House(limits=Limits(slots_max=3), facts=facts)
    for seed in range(4):
        house.submit(prompt(20, seed), 12, ignore_eos=True)
    slots = set()
    while house.step() is not None:
        buffers = house.core.stats().buffers
        assert (buffers.weights, buffers.live % 4) == (2, 0)
        assert buffers.snapshots >= house.tree.buffers
        slots.add(buffers.live // 4)
    assert {1, 3} <= slots <= {0, 1, 2, 3}
    assert house.core.stats().buffers.snapshots == house.tree.buffers > 0
    house.close()


def test_a_published_value_does_not_change_any_more() -> None:
    house = busy_house()
    house.step()
    stats = house.core.stats()
    copy = Stats(**{name: getattr(stats, name) for name in Stats.__slots__})
    requests, draft_tokens = dict(stats.requests), stats.draft_tokens
    house.run()
    assert (stats.requests, stats.draft_tokens) == (requests, draft_tokens)
    assert stats == copy
    with pytest.raises(FrozenInstanceError):
        stats.steps = 0  # type: ignore[misc]
    house.close()


def test_labels_are_closed_sets() -> None:
    house = busy_house()
    stats = house.core.stats()
    assert tuple(stats.requests) == tuple(Outcome)
    assert tuple(stats.prefix_recomputed_tokens) == RECOMPUTE_CAUSES
    assert len(stats.draft_tokens) == len(stats.accepted_tokens) == Limits().draft_depth_max
    house.run()
    house.close()


def test_a_cancelled_prefill_counts_what_it_computed() -> None:
    house = House(limits=Limits(slots_max=2, prefill_tokens_max=16))
    stream: Stream = house.submit(prompt(60), 5)
    house.step()
    house.step()
    house.cancel(stream)
    house.run()
    stats = house.core.stats()
    assert stats.prompt_tokens == stats.prefix_recomputed_tokens["cold"] == 32
    assert stats.generated_tokens == stats.time_to_first_token.count == 0
    house.close()


BOUNDS = (1.0, 2.0, 4.0)


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 5))))
def test_histogram_counts_each_value_in_its_bucket(values: list[tuple[float, int]]) -> None:
    histogram = Histogram(BOUNDS)
    for value, times in values:
        histogram.observe(value, times)
    view = histogram.view()
    expected = [0, 0, 0, 0]
    for value, times in values:
        expected[bisect_left(BOUNDS, value)] += times
    assert list(view.counts) == expected
    assert view.count == sum(times for _, times in values)
    assert view.total == pytest.approx(sum(value * times for value, times in values))
    assert histogram.view() is view, "nothing was observed, so nothing is copied"


def test_a_bound_belongs_to_its_bucket() -> None:
    """Prometheus: le is inclusive."""
    histogram = Histogram(BOUNDS)
    histogram.observe(2.0)
    assert histogram.view().counts == (0, 1, 0, 0)
    assert histogram.view().mean == 2.0
    assert Histogram(BOUNDS).view().mean == 0.0

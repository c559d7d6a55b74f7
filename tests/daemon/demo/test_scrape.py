"""The daemon's counters against the clients' sums: when they agree, and that they can disagree."""

from __future__ import annotations

import math

import pytest

from sapwood.daemon.demo.errors import DemoError
from sapwood.daemon.demo.scrape import Counters, compare, parse_metrics, settled
from sapwood.daemon.demo.script import CAST, PINNED_DEPTH
from tests.daemon.demo.told import told

RIVER, BOAT = CAST[0], CAST[4]

# 4 prompt tokens of which 3 cached, 4 generated, 2 rounds with 4 drafts, all accepted.
FINISHED = told(RIVER, [[30], [31, 32, 6]], cached=(3,))
CANCELLED = told(BOAT, [[30], [31, 32, 33]], cached=(2,))
EXTRA = 2 * (PINNED_DEPTH + 1)

TEXT = """\
# HELP sapwood_requests_total Requests by how they ended.
# TYPE sapwood_requests_total counter
sapwood_requests_total{outcome="stop"} 3.0
sapwood_requests_total{outcome="cancelled"} 1.0
# HELP sapwood_draft_tokens_total Drafts verified, by position in their round.
# TYPE sapwood_draft_tokens_total counter
sapwood_draft_tokens_total{position="1"} 7.0
sapwood_draft_tokens_total{position="2"} 5.0
# HELP sapwood_requests_running Requests in prefill or decode.
# TYPE sapwood_requests_running gauge
sapwood_requests_running 2.0
# HELP python_info Not ours.
# TYPE python_info gauge
python_info{version="3"} 1.0
"""


def counters(**moved: float) -> Counters:
    """All that a daemon counts; what is not in `moved` has not."""
    values = {
        "requests_total": 0.0,
        "prompt_tokens_total": 0.0,
        "prefix_cached_tokens_total": 0.0,
        "generated_tokens_total": 0.0,
        "draft_rounds_total": 0.0,
        "draft_tokens_total": 0.0,
        "accepted_tokens_total": 0.0,
    }
    found = {(name, ""): value for name, value in (values | moved).items()}
    outcomes = ("stop", "length", "stop_sequence", "cancelled", "deadline", "rejected", "failed")
    return found | {("requests_total", label): moved.get(label, 0.0) for label in outcomes}


AFTER_FINISHED = {
    "stop": 1.0,
    "prompt_tokens_total": 4.0,
    "prefix_cached_tokens_total": 3.0,
    "generated_tokens_total": 4.0,
    "draft_rounds_total": 2.0,
    "draft_tokens_total": 4.0,
    "accepted_tokens_total": 4.0,
}


def broken(after: dict[str, float], *dialogues: object) -> list[str]:
    checks = compare(counters(), counters(**after), dialogues)  # type: ignore[arg-type]
    return [check.name for check in checks if not check.agrees]


def test_only_our_own_samples_are_read() -> None:
    found = parse_metrics(TEXT)
    assert found["requests_total", "stop"] == 3.0
    assert found["draft_tokens_total", "2"] == 5.0
    assert len(found) == 5


def test_counters_agree_with_what_finished() -> None:
    assert broken(AFTER_FINISHED, FINISHED) == []


@pytest.mark.parametrize("name", AFTER_FINISHED)
@pytest.mark.parametrize("off", [-1.0, 1.0])
def test_one_token_or_request_more_or_less_is_a_disagreement(name: str, off: float) -> None:
    after = AFTER_FINISHED | {name: AFTER_FINISHED[name] + off}
    shown = f"requests_total {name}" if name == "stop" else name
    assert broken(after, FINISHED) == [shown]


def test_differences_count_not_totals() -> None:
    before = counters(**{name: 10.0 for name in AFTER_FINISHED})
    after = counters(**{name: 10.0 + value for name, value in AFTER_FINISHED.items()})
    assert all(check.agrees for check in compare(before, after, [FINISHED]))


def test_an_outcome_that_nobody_saw_is_a_disagreement() -> None:
    assert broken(AFTER_FINISHED | {"failed": 1.0}, FINISHED) == ["requests_total failed"]


@pytest.mark.parametrize(
    ("beyond", "agrees"), [(-1, False), (0, True), (EXTRA, True), (EXTRA + 1, False)]
)
def test_a_cancelled_request_may_generate_two_steps_beyond_what_its_client_saw(
    beyond: int, agrees: bool
) -> None:
    after = {
        "cancelled": 1.0,
        "prompt_tokens_total": 4.0,
        "prefix_cached_tokens_total": 2.0,
        "generated_tokens_total": 4.0 + beyond,
        "draft_rounds_total": 1.0,
        "draft_tokens_total": float(PINNED_DEPTH),
        "accepted_tokens_total": 2.0,
    }
    assert (broken(after, CANCELLED) == []) is agrees


def test_what_finished_is_exact_beside_a_cancelled_request() -> None:
    after = {name: 0.0 for name in AFTER_FINISHED} | {"stop": 1.0, "cancelled": 1.0}
    after |= {"prompt_tokens_total": 9.0, "prefix_cached_tokens_total": 5.0}  # 8 were asked
    assert "prompt_tokens_total" in broken(after, FINISHED, CANCELLED)


def test_a_counter_that_is_missing_agrees_with_nothing() -> None:
    (check,) = [c for c in compare({}, {}, []) if c.name == "prompt_tokens_total"]
    assert (check.low, check.high) == (0, 0)
    assert math.isnan(check.counted)
    assert not check.agrees


def test_settled_waits_until_nothing_runs() -> None:
    busy = {("requests_running", ""): 1.0, ("requests_waiting", ""): 0.0}
    idle = {("requests_running", ""): 0.0, ("requests_waiting", ""): 0.0}
    answers = iter([busy, busy, idle])
    assert settled("anywhere", lambda _: next(answers)) == idle


def test_no_metrics_endpoint_is_said_in_one_message() -> None:
    with pytest.raises(DemoError, match="metrics endpoint does not answer"):
        settled("127.0.0.1:1")

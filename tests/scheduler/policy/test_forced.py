"""Forced drafts are nearly always accepted, and the policy must not take that for the drafter's."""

from __future__ import annotations

from random import Random

import pytest

from sapwood.scheduler.policy.depth import DepthPolicy, Row
from sapwood.scheduler.policy.step_cost import StepShape
from tests.scheduler.policy.world import CONTEXT, COSTS, DEPTH_MAX, UNIT_S

ROWS, FORCED, STEPS = 4, 4, 400
BAD = 0.1  # the drafter's chance: on a CPU not worth a draft


def mean_depth(told: int) -> float:
    """Of rows without forced drafts in the last half, where every other step has some forced.

    told: as what the policy is told of them.
    """
    policy, random = DepthPolicy(DEPTH_MAX), Random(3)
    draftings = [policy.drafting() for _ in range(ROWS)]
    depths: list[int] = []
    for step in range(STEPS):
        forced = FORCED * (step % 2)
        rows = [Row(drafting, DEPTH_MAX, CONTEXT, forced=forced) for drafting in draftings]
        chosen = policy.choose(rows)
        assert min(chosen) >= forced
        for drafting, depth in zip(draftings, chosen, strict=True):
            accepted = forced
            while accepted < depth and random.random() < BAD:
                accepted += 1
            policy.observe_row(drafting, depth, accepted, min(told, forced))
        drawn = sum(depth for depth in chosen if depth > forced)
        deepest = max((depth for depth in chosen if depth > forced), default=0)
        tokens = ROWS + sum(chosen)
        shape = StepShape(tokens - drawn, drawn, deepest, CONTEXT * ROWS)
        policy.observe_step(shape, UNIT_S * COSTS["cpu"](shape))
        if not forced and step > STEPS // 2:
            depths += chosen
    return sum(depths) / len(depths)


def test_a_bad_drafter_stays_one() -> None:
    assert mean_depth(FORCED) < 0.5


def test_it_would_be_taken_for_a_good_one() -> None:
    """The inverse: not told that they are forced, the policy drafts for nothing."""
    assert mean_depth(0) > 1.0


@pytest.mark.parametrize("pinned", [None, 6])
def test_what_is_forced_is_drafted_and_no_more_than_that_where_drafts_are_worth_nothing(
    pinned: int | None,
) -> None:
    policy = DepthPolicy(DEPTH_MAX)
    depths = policy.choose([Row(policy.drafting(), DEPTH_MAX, CONTEXT, pinned, forced=5)])
    assert depths == [5 if pinned is None else 6]

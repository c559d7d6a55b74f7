"""What the depth policy is held to: shares of the best fixed depth, and of plain decoding.

Shares are of expected tokens in the seconds that the cost alone takes (world).
"""

from __future__ import annotations

from itertools import product
from statistics import mean

import pytest

from tests.quick import few_quick
from tests.scheduler.policy.world import (
    COSTS,
    Noise,
    World,
    best_rate,
    bursts,
    falling,
    fixed_rate,
    geometric,
    neighbour,
    quiet,
)

REPLY = (10, 66)
# For what takes seconds a cost: what two cores cost, and what a dear drafter does.
FEW_COSTS = few_quick(COSTS, "cpu", "drafter")


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("rows", few_quick([1, 4, 8, 16], 1, 8))
def test_from_a_cold_start_it_is_soon_as_good_as_the_best_fixed_depth(cost: str, rows: int) -> None:
    """Never under 0.93 of it over the first 400 steps, whatever is accepted."""
    for quality in (0.05, 0.5, 0.9):
        world = World(COSTS[cost], geometric(quality), rows)
        best = best_rate(COSTS[cost], world.chances, rows)
        assert world.run(400) >= 0.93 * best, f"quality {quality}"


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("rows", few_quick([1, 4, 16], 4))
def test_later_it_is_the_best_fixed_depth_but_for_what_it_tries(cost: str, rows: int) -> None:
    for chances in (geometric(0.3), falling(0.8)):
        world = World(COSTS[cost], chances, rows)
        world.run(300)
        assert world.run(500) >= 0.95 * best_rate(COSTS[cost], chances, rows)


def test_company_that_comes_finds_the_depth_that_fills_a_tile() -> None:
    """Two and four rows, a dozen steps each, of what one, eight and 32 rows have shown."""
    shares = []
    for seed, quality in product(range(1, 5), (0.6, 0.8, 0.9)):
        world = World(COSTS["stairs16"], geometric(quality), 1, quiet, seed)
        for rows, steps in ((1, 16), (8, 14), (32, 12), (1, 16), (2, 8), (4, 10)):
            world.resize(rows)
            rate = world.run(steps)
            if rows in (2, 4):
                shares.append(rate / best_rate(COSTS["stairs16"], world.chances, rows))
    assert mean(shares) >= 0.93


@pytest.mark.parametrize("noise", few_quick([quiet, neighbour], neighbour))
@pytest.mark.parametrize("cost", ["steep", "cpu", "bent8", "drafter"])
def test_where_drafts_do_not_pay_plain_decoding_is_all_but_reached(cost: str, noise: Noise) -> None:
    """0.98 of it, also beside a neighbour that halves the speed for tens of steps."""
    for rows in (1, 8):
        shares = []
        for seed in (1, 2, 3):
            world = World(COSTS[cost], geometric(0.05), rows, noise, seed)
            world.run(200)
            shares.append(world.run(600) / fixed_rate(COSTS[cost], world.chances, rows, 0))
        assert mean(shares) >= 0.98 and min(shares) >= 0.97, f"{rows} rows"


@pytest.mark.parametrize("cost", FEW_COSTS)
def test_a_neighbour_changes_little_of_what_is_chosen(cost: str) -> None:
    for rows, quality in ((4, 0.9), (16, 0.5)):
        shares = []
        for seed in (1, 2, 3):
            world = World(COSTS[cost], geometric(quality), rows, neighbour, seed)
            world.run(200)
            shares.append(world.run(600) / best_rate(COSTS[cost], world.chances, rows))
        assert mean(shares) >= 0.92 and min(shares) >= 0.85, f"{rows} rows"


@pytest.mark.parametrize("cost", FEW_COSTS)
def test_steps_that_are_disturbed_by_chance_keep_it_from_little(cost: str) -> None:
    """Three in ten take three times as long: a first sample that is wrong is looked at again."""
    shares = []
    for rows, quality, seed in product((1, 4, 16), (0.5, 0.9), (1, 2)):
        world = World(COSTS[cost], geometric(quality), rows, bursts, seed)
        shares.append(world.run(300) / best_rate(COSTS[cost], world.chances, rows))
    print(f"{cost}: {mean(shares):.3f}, {min(shares):.3f} at the least")
    assert mean(shares) >= 0.9 and min(shares) >= 0.6


@pytest.mark.parametrize("reply", [None, REPLY])
@pytest.mark.parametrize("cost", ["cpu", "bent8", "drafter"])
@pytest.mark.parametrize("rows", few_quick([1, 4, 16], 4))
def test_a_rise_of_acceptance_is_used_within_a_hundred_steps(
    rows: int, cost: str, reply: tuple[int, int] | None
) -> None:
    """After 2,000 steps at 0.1: from the hundredth step at 0.9 on, nine tenths of what it gives."""
    world = World(COSTS[cost], geometric(0.1), rows, reply=reply)
    world.run(2000)
    world.chances = geometric(0.9)
    world.run(100)
    assert world.run(100) >= 0.9 * best_rate(COSTS[cost], world.chances, rows)


@pytest.mark.parametrize("cost", FEW_COSTS[2:])
def test_twice_the_rows_give_no_fewer_tokens(cost: str) -> None:
    """Tokens a second never fall by more than 3 % when clients double, in the 200 steps after."""
    for quality in (0.5, 0.9):
        world = World(COSTS[cost], falling(quality), 1, reply=REPLY)
        before = world.run(200)
        for rows in (2, 4, 8, 16, 32):
            world.resize(rows)
            rate = world.run(200)
            assert rate >= 0.97 * before, f"{rows} rows, quality {quality}"
            before = rate

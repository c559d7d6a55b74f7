"""The joint depth policy in closed loop with devices of known cost and drafters."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product
from random import Random

import pytest

from sapwood.scheduler.policy.depth import DepthPolicy, Drafting, Row
from sapwood.scheduler.policy.exploration import PROBE_STEPS_MAX
from sapwood.scheduler.policy.slice_cost import NO_READING, Reading
from sapwood.scheduler.policy.step_cost import StepCost, StepShape
from tests.scheduler.policy.world import (
    CONTEXT,
    COSTS,
    Cost,
    fixed_rate,
    linear,
    predicted,
    tokens_of,
)

FLAT, STEEP, CPU = COSTS["flat"], COSTS["steep"], COSTS["cpu"]
CURVED: Cost = lambda s: 1.0 + 0.05 * max(s.rows + s.drafted - 8, 0) + 0.08 * s.iterations  # noqa: E731


class World:
    """Rows with a chance of acceptance each, a cost, and the policy in between."""

    def __init__(self, cost: Cost, qualities: Sequence[float], seed: int = 1) -> None:
        self.policy = DepthPolicy(8)
        self.cost = cost
        self.qualities = list(qualities)
        self.draftings = [self.policy.drafting() for _ in qualities]
        self.random = Random(seed)
        self.depths: list[list[int]] = []
        self.tokens = 0
        self.seconds = 0.0

    def rows(self) -> list[Row]:
        return [Row(drafting, 8, CONTEXT) for drafting in self.draftings]

    def step(self, stall: float = 1.0, prefill_tokens: int = 0) -> list[int]:
        depths = self.policy.choose(self.rows(), reads=prefill_tokens > 0)
        self.play(depths, stall, prefill_tokens)
        return depths

    def play(self, depths: list[int], stall: float = 1.0, prefill_tokens: int = 0) -> None:
        for drafting, quality, depth in zip(self.draftings, self.qualities, depths, strict=True):
            accepted = 0
            while accepted < depth and self.random.random() < quality:
                accepted += 1
            self.policy.observe_row(drafting, depth, accepted)
            self.tokens += accepted + 1
        context = CONTEXT * len(depths)
        shape = StepShape(
            len(depths),
            sum(depths),
            max(depths),
            context,
            Reading(1, prefill_tokens) if prefill_tokens else NO_READING,
        )
        seconds = (self.cost(shape) + 0.02 * prefill_tokens) * stall
        self.policy.observe_step(shape, seconds)
        self.seconds += seconds
        self.depths.append(depths)

    def run(self, steps: int) -> float:
        """Tokens per second over `steps` steps."""
        tokens, seconds = self.tokens, self.seconds
        for _ in range(steps):
            self.step()
        return (self.tokens - tokens) / (self.seconds - seconds)


def usual(depths: Sequence[list[int]], row: int = 0) -> int:
    """The depth that a row had most often: what is chosen, without the probes."""
    chosen = [step[row] for step in depths]
    return max(set(chosen), key=chosen.count)


def best_fixed(cost: Cost, quality: float, rows: int) -> float:
    """The best rate of one depth for all rows, in expectation."""
    return max(fixed_rate(cost, [quality] * 8, rows, depth) for depth in range(9))


@pytest.mark.parametrize("rows", [1, 4, 16])
@pytest.mark.parametrize("quality", [0.0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("cost", [FLAT, STEEP, CPU, CURVED], ids=["flat", "steep", "cpu", "curved"])
def test_the_rate_comes_near_the_best_fixed_depth(cost: Cost, quality: float, rows: int) -> None:
    """After a warm-up, probes included, and never below plain decoding for long."""
    world = World(cost, [quality] * rows)
    world.run(150)
    best, plain = best_fixed(cost, quality, rows), fixed_rate(cost, [], rows, 0)
    rate = world.run(400)
    assert rate >= 0.85 * best
    assert rate >= 0.96 * plain


def test_deep_where_the_forward_is_flat_and_shallow_where_it_is_steep() -> None:
    deep, shallow = World(FLAT, [0.9]), World(CPU, [0.8] * 16)
    deep.run(300)
    shallow.run(300)
    assert usual(deep.depths[100:]) >= 6
    assert 1 <= usual(shallow.depths[100:]) <= 2


def test_each_row_has_its_own_depth() -> None:
    """A row that nothing is accepted of parks beside one that all is accepted of."""
    world = World(CPU, [0.95, 0.0, 0.95, 0.0])
    world.run(300)
    assert usual(world.depths[100:], 0) >= 3
    assert usual(world.depths[100:], 1) == 0


@pytest.mark.parametrize("cost", [FLAT, CPU, STEEP], ids=["flat", "cpu", "steep"])
def test_a_row_of_no_acceptance_parks_and_its_probes_back_off(cost: Cost) -> None:
    """S8: depth 0 within 40 rounds; the distance of two probes does not shrink up to its bound."""
    world = World(cost, [0.0])
    world.run(3000)
    drafting = [n for n, depths in enumerate(world.depths) if depths[0]]
    probes = [n for n in drafting if n >= 40]
    assert all(world.depths[n] == [1] for n in probes)
    assert len(probes) <= 3000 // PROBE_STEPS_MAX
    gaps = [min(b - a, PROBE_STEPS_MAX) for a, b in pairwise(probes)]
    assert gaps == sorted(gaps)
    assert gaps[-1] == PROBE_STEPS_MAX
    assert all(0 <= depth <= 8 for depths in world.depths for depth in depths)


def test_rows_probe_together() -> None:
    """An iteration is paid once for all, so parked rows that joined apart try in the same steps."""
    world = World(CPU, [0.0] * 4)
    for joined in (37, 61, 95):
        world.run(joined)
        world.draftings[joined % 4] = world.policy.drafting()
    world.run(1500)
    probing = [depths for depths in world.depths[600:] if any(depths)]
    assert sum(map(sum, probing)) / len(probing) > 1.5


def test_parking_survives_a_host_stall() -> None:
    """One step of a hundred times its length, plain or drafting, does not wake the rows."""
    world = World(CPU, [0.1] * 4)
    world.run(300)
    assert usual(world.depths[100:]) == 0
    world.step(stall=100.0)
    after = len(world.depths)
    world.run(40)
    assert sum(any(depths) for depths in world.depths[after:]) <= 5


def test_a_stall_does_not_park_what_pays() -> None:
    world = World(CPU, [0.9] * 4)
    world.run(300)
    before = usual(world.depths[100:])
    world.step(stall=100.0)
    after = len(world.depths)
    world.run(60)
    assert abs(usual(world.depths[after:]) - before) <= 1


def test_acceptance_is_followed_when_it_drifts() -> None:
    """A parked row comes back by its probes, and one whose text turns bad parks."""
    world = World(CPU, [0.0] * 2)
    world.run(200)
    world.qualities = [0.95] * 2
    world.run(900)
    assert usual(world.depths[-100:]) >= 2
    world.qualities = [0.0] * 2
    world.run(100)
    assert usual(world.depths[-50:]) == 0


def test_a_slow_first_step_is_forgotten() -> None:
    """The first steps of a process compile and allocate: a thousandfold sample comes first."""
    world = World(CPU, [0.9] * 2)
    world.step(stall=1000.0)
    world.run(200)
    assert world.run(300) >= 0.88 * best_fixed(CPU, 0.9, 2)


def test_a_prefill_in_the_step_does_not_pollute_the_cost_of_decoding() -> None:
    world, plain = World(CPU, [0.7] * 4), World(CPU, [0.7] * 4)
    for world_of in (world, plain):
        world_of.run(100)
    for _ in range(100):
        world.step(prefill_tokens=512)
    shape = StepShape(4, 8, 2, 4 * CONTEXT)
    expected = predicted(plain.policy.cost, shape)
    assert predicted(world.policy.cost, shape) == pytest.approx(expected, rel=0.1)


def test_beside_prompts_rows_draft_as_they_would_without() -> None:
    """What a step reads is reckoned from what its rows take, and not the other way round."""
    world = World(CPU, [0.6] * 8)
    world.run(150)
    world.policy._exploration.tried = lambda search, best, *_: best  # type: ignore[method-assign]
    rows = world.rows()
    assert world.policy.choose(rows, reads=True) == world.policy.choose(rows)


def test_pinned_rows_keep_their_depth_and_lend_their_iterations() -> None:
    """A pinned row's iterations are paid for anyway: the others draft along more readily."""
    costly = linear(1.0, 0.01, 0.001, 0.9)
    world = World(costly, [0.6] * 3)
    world.run(200)
    alone = world.policy.choose(world.rows())
    rows = [*world.rows(), Row(Drafting(8), 8, CONTEXT, pinned=4)]
    for _ in range(30):
        beside = world.policy.choose(rows)
        assert beside[3] == 4
    assert sum(beside[:3]) > sum(alone)
    assert world.policy.choose([Row(Drafting(8), 3, CONTEXT, pinned=0)]) == [0]


def test_a_row_never_drafts_past_what_it_may_emit() -> None:
    world = World(FLAT, [0.95])
    world.run(100)
    for depth_max in range(9):
        for _ in range(40):
            row = Row(world.draftings[0], depth_max, CONTEXT)
            assert 0 <= world.policy.choose([row])[0] <= depth_max


def test_without_a_drafter_every_depth_is_0() -> None:
    policy = DepthPolicy(0)
    assert policy.choose([Row(policy.drafting(), 0, CONTEXT)] * 3) == [0, 0, 0]
    assert policy.parked_rows == 0


@pytest.mark.parametrize("cost", [CPU, CURVED, COSTS["stairs16"]], ids=["cpu", "curved", "stairs"])
def test_the_choice_is_the_joint_optimum_of_the_model(cost: Cost) -> None:
    """No other combination of depths has a higher expected rate, by exhaustive search."""
    world = World(cost, [0.9, 0.5, 0.2, 0.7])
    world.run(300)
    policy, rows = world.policy, [Row(d, 3, CONTEXT) for d in world.draftings]
    search, reach = policy._search(rows)

    def rate(depths: Sequence[int]) -> float:
        shape = StepShape(4, sum(depths), max(depths), 4 * CONTEXT)
        return search.tokens(depths) / predicted(policy.cost, shape)

    every = list(product(range(4), repeat=4))
    assert rate(search.best(reach)) == pytest.approx(max(map(rate, every)), rel=1e-6)


def test_parked_rows_are_counted_but_probes_and_pins_are_not_parking() -> None:
    world = World(STEEP, [0.0] * 3)
    world.run(100)
    pinned = Row(world.policy.drafting(), 8, CONTEXT, pinned=0)
    world.policy.choose([*world.rows(), pinned])
    assert world.policy.parked_rows == 3


def test_a_search_that_is_cut_short_keeps_what_it_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its iterations are bounded; after the first it has more than plain decoding gives."""
    world = World(FLAT, [0.9, 0.5, 0.1])
    world.run(300)

    def depths(iterations: int) -> list[int]:
        monkeypatch.setattr("sapwood.scheduler.policy.search.RATE_ITERATIONS", iterations)
        search, reach = world.policy._search(world.rows())
        return search.best(reach)

    assert depths(0) == [0, 0, 0]
    found = depths(1)
    tokens = sum(tokens_of([q] * 8, d) for q, d in zip(world.qualities, found, strict=True))
    assert tokens / FLAT(StepShape(3, sum(found), max(found), 0)) > fixed_rate(FLAT, [], 3, 0)


def test_nothing_is_chosen_far_from_what_was_seen() -> None:
    """One iteration more than the deepest step so far, and at most twice its tokens."""
    world = World(FLAT, [0.95] * 4)
    world.run(20)
    assert world.depths[0] == [0] * 4
    seen, tokens = 0, 4
    for depths in world.depths[1:]:
        assert max(depths) <= seen + 1
        assert 4 + sum(depths) <= 2 * tokens
        seen, tokens = max(seen, *depths), max(tokens, 4 + sum(depths))
    assert seen == 8


@pytest.mark.parametrize(("pinned", "depth_max"), [(0, 8), (3, 8), (None, 0)])
def test_where_nobody_chooses_nothing_is_reckoned(
    pinned: int | None, depth_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pinned rows, or no drafter: no price is asked for, and of few steps anything is learned."""
    policy = DepthPolicy(depth_max)
    rows = [Row(policy.drafting(), depth_max, CONTEXT, pinned)] * 2
    monkeypatch.setattr(StepCost, "prices", None)
    depth = pinned or 0
    for _ in range(8):
        assert policy.choose(rows) == [depth, depth]
        policy.observe_step(StepShape(2, 2 * depth, depth, 2 * CONTEXT), 0.1)
    assert policy.cost._step == 2

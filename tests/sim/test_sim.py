"""Seeds, kept scenarios, every allocation in turn: nothing is violated, and all comes to rest."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from sapwood.cache.prefix import eviction
from tests.quick import few_quick
from tests.sim.draw import scenario
from tests.sim.play import HERE, Seen, Violation, play
from tests.sim.report import EDGES, RARE_EDGES, play_seed
from tests.sim.shrink import shrink
from tests.sim.story import (
    Action,
    Again,
    Ask,
    Back,
    Break,
    BreakDisk,
    Config,
    Forget,
    Fork,
    GiveUp,
    Jump,
    Keep,
    Kill,
    LetGo,
    Open,
    Pause,
    Scenario,
    Slow,
    Stall,
    Stop,
    TakeUp,
    Wipe,
)

FEW_SEEDS, FEW_MISSED = 20, 3  # transitions that so few need not take
CPU_S = 20.0
SEEDS_MIN = 60  # were a machine ever so slow
LONG_SEEDS = 4000


def many(first: int, seeds: int, cpu_s: float) -> Seen:
    """Seeds from `first` on, as many as that time takes or `seeds`."""
    seen, ends = Seen(), time.process_time() + cpu_s
    for seed in range(first, first + seeds):
        one, failure = play_seed(seed)
        assert not failure, failure
        seen.add(one)
        if time.process_time() > ends and seen.scenarios >= SEEDS_MIN:
            break
    return seen


@pytest.mark.timeout(600)
def test_a_few_seeds() -> None:
    """All that `checks`, `world` and the fake device assert, and nearly all transitions are taken.

    T1 to T14, S1, S3 to S8, L1 to L3, L5 to L8, M1 to M3, R1, R2 and N1 to N4.
    """
    seen = many(0, FEW_SEEDS, float("inf"))
    missed = set(EDGES) - RARE_EDGES - set(seen.edges)
    assert len(missed) <= FEW_MISSED, missed


@pytest.mark.long
def test_twenty_seconds_of_seeds() -> None:
    """The same, and all transitions but the rare ones are taken."""
    assert set(EDGES) - RARE_EDGES <= set(many(0, 10**6, CPU_S).edges)


@pytest.mark.parametrize("seeds", few_quick([4, 15], 4))
def test_seeds_whose_evictions_look_at_a_few_nodes_of_many(
    seeds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T4, T6, T9, M1: as a tree of thousands of nodes does, which no seed grows."""
    for name in ("EXACT_NODES", "LOOKED_NODES", "POOL_NODES"):
        monkeypatch.setattr(eviction, name, 2)
    many(2 * 10**6, seeds, float("inf"))


@pytest.mark.long
def test_thousands_of_seeds() -> None:
    """The same for seeds that `make test` does not come to."""
    many(10**6, LONG_SEEDS, float("inf"))


KEPT = sorted((HERE / "regressions").glob("*.json"))


@pytest.mark.parametrize("file", KEPT, ids=lambda file: file.stem)
def test_what_once_failed(file: Path) -> None:
    """Each is the shortest scenario of a fault that a seed found."""
    _, violation = play(Scenario.parse(file.read_text()))
    assert violation is None, f"{violation.message}\n{violation.story}"


CROWD = tuple(Ask(n // 3, n, (("pool", n % 2, 20 + n),), 12, store_reply=True) for n in range(14))


@pytest.mark.parametrize("once", few_quick([False, True], True))
def test_any_allocation_may_fail(once: bool) -> None:
    """M2: steps are lost, or the daemon dies with its tree in order; every stream ends once.

    The first, the second, the third, until there is none left to fail. What fails once within a
    step ends nobody.
    """
    tight, steps = Config(budget_bytes=3000, tree_nodes_max=6), 0
    for after in range(1000):
        failing = Break(0, after, once)
        crowd = Scenario(tight, (failing, *CROWD, Ask(60, 99, (("pool", 0, 30),))))
        seen, violation = play(crowd)
        assert violation is None, violation
        lost = seen.pairs["lost step", "lost step"]
        if not (lost or seen.pairs["allocation", "allocation"]):
            break
        steps += bool(lost) and not seen.pairs["allocation", "allocation"]
    assert after > 40 and bool(steps) == once


def test_a_scenario_survives_as_text() -> None:
    """All kinds of actions, and every setting of every seed."""
    kinds: tuple[Action, ...] = (
        Ask(0, 1, (("pool", 1, 5), ("turn", 9, -1)), stop=("é", "\n"), seed=4, deadline_s=0.5),
        Keep(0, -1, (("pool", 1, 5),), ttl_s=2.0), LetGo(1, -1), Wipe(1, (("turn", 1, 3),)),
        Again(1, 2, 1), GiveUp(2, 1, "FAULT"), Pause(3, 1, 4), Slow(4, 2, 3.0), Break(5, 1),
        Stop(6), Open(7, 0), Fork(7, 0, 1), Back(7, 1, 3), Forget(8, 0), TakeUp(8, 3, 1),
        BreakDisk(9, 2, stuck=True), Stall(9, 2), Jump(10, 0.5), Kill(11),
    )  # fmt: skip
    for each in (Scenario(Config(window=3), kinds), scenario(3), scenario(4)):
        assert Scenario.parse(each.dump()) == each


def broken(played: Scenario) -> tuple[Seen, Violation | None]:
    """As if a third stream were one too many, and nothing else went wrong."""
    asks = [action for action in played.actions if isinstance(action, Ask)]
    failure = Violation("three", "three", "") if len(asks) > 2 else None
    return Seen(1), failure


def test_shrinking_leaves_what_it_takes_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.sim.shrink.play", broken)
    long = scenario(5)
    _, violation = broken(long)
    assert violation is not None and len(long.actions) > 20
    short = shrink(long, violation)
    assert short.config == Config()
    asks = [action for action in short.actions if isinstance(action, Ask)]
    assert len(asks) == len(short.actions) == 3
    assert all(len(ask.parts) == 1 and ask.parts[0][2] in (1, -1) for ask in asks)
    plain = Ask(0, 0, (("pool", 0, 1),), 1)
    assert {replace(ask, name=0, parts=plain.parts) for ask in asks} == {plain}


def test_a_violation_says_how_to_see_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.sim.world.World._turn", lambda self: 1 // 0)
    _, told = play_seed(7)
    for part in (
        "seed=7 commit=",
        "ZeroDivisionError",
        "python -m tests.sim replay 7",
        '[\n{"config"',
        "last plan",
    ):
        assert part in told

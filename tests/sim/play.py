"""One seed or one scenario from beginning to end, and what to tell of it."""

from __future__ import annotations

import subprocess
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.sim.story import Scenario
from tests.sim.world import World

HERE = Path(__file__).parent
FAULTS_MEET_TICKS = 5  # faults so near each other have met


@dataclass
class Seen:
    """What some scenarios went through, added up."""

    scenarios: int = 0
    steps: int = 0
    edges: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, other: Seen) -> None:
        self.scenarios += other.scenarios
        self.steps += other.steps
        self.edges += other.edges
        self.pairs += other.pairs


@dataclass(frozen=True)
class Violation:
    """What went wrong. `key`: two runs with the same one failed alike."""

    message: str
    key: str
    story: str


def play(played: Scenario) -> tuple[Seen, Violation | None]:
    """Run it. Whatever is raised is a violation: of an invariant, or of sense."""
    world = World(played)
    violation = None
    try:
        world.run()
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        raised = frames[-1]
        key = f"{type(error).__name__} in {Path(raised.filename).name} {raised.name}"
        message = f"{type(error).__name__}: {error}"[:2000]
        told = [f"  {frame.name} ({Path(frame.filename).name}:{frame.lineno})" for frame in frames]
        violation = Violation(message, key, "\n".join([*told[-8:], world.story()]))
    return Seen(1, world.steps, world.edges, _pairs(world.faults)), violation


def commit() -> str:
    """Of this checkout, with a + where it has changes; "unknown" outside of one."""
    told = subprocess.run(
        ["git", "describe", "--always", "--exclude=*", "--dirty=+", "--abbrev=12"],
        cwd=HERE, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return told.stdout.strip() or "unknown"


def _pairs(ticks: list[set[str]]) -> Counter[tuple[str, str]]:
    pairs: Counter[tuple[str, str]] = Counter()
    for tick, faults in enumerate(ticks):
        near = set().union(*ticks[max(0, tick - FAULTS_MEET_TICKS) : tick + 1])
        pairs.update({(min(a, b), max(a, b)) for a in faults for b in near})
    return pairs

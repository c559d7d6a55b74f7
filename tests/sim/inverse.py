"""How an inverse test ends: with a safeguard off it fails, by what that is there for."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.sim.draw import scenario
from tests.sim.play import play
from tests.sim.story import Scenario

SEEDS_MAX = 200


def fails_without(
    off: Callable[[pytest.MonkeyPatch], None],
    found: str,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Within SEEDS_MAX seeds, and by what is found.

    seed: one that is known to fail, and is played first. Where other things are drawn, or done, it
    may fail no more: then the first that does is found again.
    """
    off(monkeypatch)
    for each in (seed, *range(SEEDS_MAX)):
        _, violation = play(scenario(each))
        if violation is not None:
            assert re.search(found, violation.message), violation
            return
    raise AssertionError(f"{SEEDS_MAX} seeds and nothing was noticed")


def fails_on(
    played: Scenario,
    off: Callable[[pytest.MonkeyPatch], None],
    found: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A scenario that passes until the safeguard is off."""
    _, violation = play(played)
    assert violation is None, violation
    off(monkeypatch)
    _, violation = play(played)
    assert violation is not None and re.search(found, violation.message), violation

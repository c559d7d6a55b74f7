"""How an inverse test ends: with a safeguard off a seed fails, by what that is there for."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.sim.draw import scenario
from tests.sim.play import play

SEEDS_MAX = 200


def fails_without(
    off: Callable[[pytest.MonkeyPatch], None], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within SEEDS_MAX seeds, and by what is found."""
    off(monkeypatch)
    for seed in range(SEEDS_MAX):
        _, violation = play(scenario(seed))
        if violation is not None:
            assert re.search(found, violation.message), violation
            return
    raise AssertionError(f"{SEEDS_MAX} seeds and nothing was noticed")

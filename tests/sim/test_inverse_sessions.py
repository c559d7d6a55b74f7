"""Of sessions too a simulator that finds nothing proves nothing, as test_inverse.py says."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sapwood.scheduler.core.sequence import Sequence
from tests.sim.inverse import fails_without
from tests.sim.test_inverse import CORE


def no_busy_sessions(patch: pytest.MonkeyPatch) -> None:
    """Whoever comes may run in a session, whoever runs there."""
    patch.setattr(f"{CORE}.sessions.Sessions.refusal", lambda *_: None)


def no_end_of_sessions(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(f"{CORE}.kept_session.KeptSession.over", lambda *_: False)


def no_memory_of_what_was_drawn(patch: pytest.MonkeyPatch) -> None:
    """A reply that is gone on with is drawn anew from its first token."""
    patch.setattr(Sequence, "go_on", lambda *_: None)


@pytest.mark.parametrize(
    ("off", "found", "seed"),
    [
        (no_busy_sessions, "N1", 1),
        (no_end_of_sessions, "N4", 4),
        (no_memory_of_what_was_drawn, "N3|S4|progress|assert", 10),
    ],
)
def test_n1_to_n4_without_a_safeguard_they_fail(
    off: Callable[[pytest.MonkeyPatch], None],
    found: str,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fails_without(off, found, seed, monkeypatch)

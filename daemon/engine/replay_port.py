"""The engine's side of the online self-check: what the core hands out is computed once more.

- All of it runs on the engine's thread, between two steps, and nothing of it outlives its call.
- A fault is told in the log, with its story and without a word of prompt or reply; where the daemon
  is to stop for one, it ends the engine.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from sapwood.scheduler.replay import Replay, Replayed, ReplayVerdict

_log = logging.getLogger(__name__)


class ReplayingCore(Protocol):
    """What it asks of the core."""

    def take_replay(self) -> Replay | None:
        """A round to compute once more now, between two steps; each once."""

    def replayed(self, replay: Replay, replayed: Replayed, seconds: float) -> None:
        """What came of one that was taken, and how long it took."""


class UnrecordedReplays:
    """How a core that is recorded has them: they change nothing that is written down."""

    _core: ReplayingCore

    def take_replay(self) -> Replay | None:
        """As ReplayingCore says."""
        return self._core.take_replay()

    def replayed(self, replay: Replay, replayed: Replayed, seconds: float) -> None:
        """As ReplayingCore says."""
        self._core.replayed(replay, replayed, seconds)


class RoundFault(Exception):
    """A round came out otherwise, and the daemon is to stop for it. Its text is for the log."""


class ReplayPort:
    """Between a core and what replays its rounds."""

    def __init__(
        self, core: ReplayingCore, replay: Callable[[Replay], Replayed], *, stops: bool
    ) -> None:
        """stops: whether a fault ends the engine."""
        self._core, self._replay, self._stops = core, replay, stops

    def due(self) -> Replay | None:
        """What to carry out now."""
        return self._core.take_replay()

    def carry_out(self, replay: Replay, clock: Callable[[], float]) -> None:
        """Compute it, and tell of it. Raises RoundFault."""
        begun = clock()
        replayed = self._replay(replay)
        self._core.replayed(replay, replayed, clock() - begun)
        if replayed.verdict is ReplayVerdict.FAULT:
            told = f"logits differ by {replayed.difference:g}; {replay.story}"
            if self._stops:
                raise RoundFault(told)
            _log.error("a round comes out otherwise when it is computed again: %s", told)

"""Rounds that are computed once more: their tokens, their time and their room (S10)."""

from __future__ import annotations

from sapwood.scheduler.core.core import Core
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.replay import Replay, Replayed, ReplayVerdict


class ReplayChecks:
    """Over one core. Times are the device's own."""

    def __init__(self, core: Core, limits: Limits) -> None:
        self._core, self._limits = core, limits
        self._stepped_s = self._spent_s = self._dearest_s = 0.0

    def stepped(self, seconds: float) -> None:
        """A step took so long."""
        self._stepped_s += seconds

    def due(self, replay: Replay, replayed: Replayed, seconds: float) -> None:
        """Before it is told of. All but the error of one expectation is earned before."""
        assert replayed.verdict is ReplayVerdict.SAME, f"S10: not what a slot held: {replay.story}"
        live = self._core._facts.live_bytes(len(replay.tokens))
        assert live <= self._core.spare_bytes, f"S10: no room for {live} bytes"
        self._spent_s += seconds
        self._dearest_s = max(self._dearest_s, seconds)
        earned = self._limits.check_share * self._stepped_s
        assert self._spent_s <= earned + self._dearest_s + 1e-9, (
            f"S10: {self._spent_s} s, {earned} s of the device's time are for it"
        )

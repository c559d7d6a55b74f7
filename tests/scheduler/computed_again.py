"""Rounds that a house computes once more between two steps, where its core has any."""

from __future__ import annotations

from sapwood.scheduler.core.core import Core
from sapwood.scheduler.replay import Replay
from tests.scheduler.fake_device import FakeDevice


class ComputedAgain:
    """The engine's part of it."""

    core: Core
    device: FakeDevice
    now: float
    stimuli: list[tuple[str, float, object]]

    def compute_again(self) -> None:
        """A round, if one is due."""
        if (due := self.core.take_replay()) is None:
            return
        self.replays(due)
        seconds = self.device.replay_s(due)
        self.stimuli.append(("replay", self.now, seconds))
        self.now += seconds
        self.core.replayed(due, self.device.replay(due), seconds)

    def replays(self, due: Replay) -> None:
        """For who checks more: before a round is computed again."""

"""How much of the device's time goes into replaying rounds: a share of what steps took, no more.

- Steps earn credit, replays spend it. A replay is let in only where its expected time is there, so
  what all of them took is within the share but for the error of one expectation.
- Credit ends at what one replay may take at most: after a long time without any they do not follow
  one another.
- Expected is what the device's prices for prompts and rows say, times by how much replays have been
  slower or quicker of late. That factor is bounded: what a single hitch did to it must not end
  replays for good.
"""

from __future__ import annotations

_FACTOR_MAX = 4.0
_OF_NEWEST = 0.3


class ReplayBudget:
    """Seconds, as the engine's clock told them."""

    def __init__(self, share: float) -> None:
        """share: of what steps take."""
        self.credit_s = 0.0
        self._share = share
        self._factor = 1.0

    def earn(self, step_s: float, replay_s_max: float) -> None:
        """A step took so long. replay_s_max: what one replay may take at most."""
        earned = self._share * max(0.0, step_s)
        self.credit_s = min(self.credit_s + earned, replay_s_max)

    def spend(self, priced_s: float, seconds: float) -> None:
        """A replay took `seconds`, where the device's prices said `priced_s`."""
        self.credit_s -= seconds
        if priced_s > 0.0:
            ratio = min(seconds / priced_s, _FACTOR_MAX)
            self._factor = max(ratio, self._factor + _OF_NEWEST * (ratio - self._factor))

    def expected_s(self, priced_s: float) -> float:
        """Of a replay that the device's prices say takes so long."""
        return priced_s * self._factor

    def affords(self, priced_s: float) -> bool:
        """Whether it is earned."""
        return self.expected_s(priced_s) <= self.credit_s

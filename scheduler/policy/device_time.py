"""What rows and slices take of the device's time, learned from the steps that they were in.

- seconds = base + decode tokens + their context + prompt tokens + the keys that those attend to, by
  a line through what was measured of late: a step counts half of what the 34th after it does.
- The base is everybody's: each row and each slice of a step bears an equal part of it.
- Not StepCost, which knows the decode part of a step far better, and of whom it is nothing. This is
  looked at in every step, and costs some 20 microseconds of it.
"""

from __future__ import annotations

from typing import NamedTuple

from sapwood.scheduler.policy.recent_line import RecentLine
from sapwood.scheduler.policy.slice_cost import KEYS_UNIT, NO_READING, Reading, keys_read

# A decode row's token, 1024 tokens of its context, a prompt's token, its 1024 keys, where a step's
# base is 1: the ratios count.
_PRIOR = (1.0, 0.03, 0.005, 0.03, 0.001)
_KEPT = 0.98  # of what a step counts, with each that follows
BLOCK_STEPS = 50  # the dearest step is that of the newest one or two blocks of so many


class Work(NamedTuple):
    """What a step does. parts: its rows and slices. context_tokens: summed over decode rows."""

    parts: int
    decode_tokens: int
    context_tokens: int
    reading: Reading = NO_READING


class DeviceTime:
    """Prices in seconds; in _PRIOR's unit until a step was seen."""

    __slots__ = ("_before", "_line", "_prices", "_steps", "_within")

    def __init__(self) -> None:
        self._steps = 0
        self._before = self._within = 0.0  # the dearest of the last block, and of this one
        self._line = RecentLine(_PRIOR, _KEPT)
        self._prices = self._line.coefficients

    def row(self, parts: int, tokens: int, context_tokens: int) -> float:
        """Seconds of a decode row in a step of so many rows and slices."""
        base, token, context, _, _ = self._prices
        return base / parts + token * tokens + context * context_tokens / KEYS_UNIT

    def slice(self, parts: int, start: int, tokens: int) -> float:
        """Seconds of a prompt's slice from `start` on in such a step."""
        read = self._read(Reading(1, tokens, keys_read(start, tokens)))
        return self._prices[0] / parts + read

    @property
    def dearest(self) -> float:
        """Seconds of the dearest step of late, by these prices."""
        return max(self._before, self._within)

    def step(self, work: Work) -> float:
        """Seconds of a whole step."""
        return self.row(1, work.decode_tokens, work.context_tokens) + self._read(work.reading)

    def observe(self, work: Work, seconds: float) -> None:
        """`seconds` from the step's plan to its commit, as the engine's clock saw it."""
        if seconds <= 0.0 or not work.parts:
            return
        reading = work.reading
        context, keys = work.context_tokens / KEYS_UNIT, reading.keys / KEYS_UNIT
        self._line.observe((1.0, work.decode_tokens, context, reading.tokens, keys), seconds)
        self._prices = self._line.coefficients
        self._count(self.step(work))

    def _read(self, reading: Reading) -> float:
        """Seconds that reading adds to a step."""
        *_, token, key = self._prices
        return token * reading.tokens + key * reading.keys / KEYS_UNIT

    def _count(self, seconds: float) -> None:
        if self._steps % BLOCK_STEPS == 0:
            self._before, self._within = self._within, 0.0
        self._steps += 1
        self._within = max(self._within, seconds)

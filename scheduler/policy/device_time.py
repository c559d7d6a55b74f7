"""What rows and slices take of the device's time, learned from the steps that they were in.

- seconds = base + decode tokens + prompt tokens + context, all coefficients >= 0, by least squares
  that forget: a step counts half of what the 34th after it does. Errors count relatively, so that a
  step which a stall made long counts little.
- Where the steps cannot tell coefficients apart they are in _PRIOR's proportion.
- The base is everybody's: each row and each slice of a step bears an equal part of it.
- Not StepCost: that learns what a choice of depths wants to know, and nothing without a drafter.
  This is looked at in every step, and costs some 20 microseconds of it.
"""

from __future__ import annotations

from typing import NamedTuple

# Base, a decode row's token, a prompt's token, 1024 tokens of context: the ratios count.
_PRIOR = (1.0, 0.03, 0.03, 0.005)
CONTEXT_UNIT = 1024
KEPT = 0.98  # of what a step counts, with each that follows
PULL = 0.02  # towards _PRIOR's proportion, of all steps' weight
BLOCK_STEPS = 50  # the dearest step is that of the newest one or two blocks of so many


class Work(NamedTuple):
    """What a step does. parts: its rows and slices. context_tokens: summed over decode rows."""

    parts: int
    decode_tokens: int
    prompt_tokens: int
    context_tokens: int


class DeviceTime:
    """Prices in seconds; in _PRIOR's unit until a step was seen."""

    __slots__ = ("_before", "_gram", "_right", "_scale", "_steps", "_theta", "_weight", "_within")

    def __init__(self) -> None:
        self._steps = 0
        self._before = self._within = 0.0  # the dearest of the last block, and of this one
        self._gram = [[0.0] * len(_PRIOR) for _ in _PRIOR]
        self._right = [0.0] * len(_PRIOR)
        self._weight = 0.0
        self._scale = 1.0  # seconds of _PRIOR's unit
        self._theta = [1.0] * len(_PRIOR)  # coefficients by _PRIOR

    def row(self, parts: int, tokens: int, context_tokens: int) -> float:
        """Seconds of a decode row in a step of so many rows and slices."""
        theta = self._theta
        own = theta[1] * _PRIOR[1] * tokens + theta[3] * _PRIOR[3] * context_tokens / CONTEXT_UNIT
        return theta[0] / parts + own

    def slice(self, parts: int, tokens: int) -> float:
        """Seconds of a prompt's slice in such a step."""
        return self._theta[0] / parts + self.prompt_token * tokens

    @property
    def dearest(self) -> float:
        """Seconds of the dearest step of late, by these prices."""
        return max(self._before, self._within)

    @property
    def prompt_token(self) -> float:
        """Seconds of one more token of a prompt."""
        return self._theta[2] * _PRIOR[2]

    def step(self, work: Work) -> float:
        """Seconds of a whole step."""
        rows = self.row(1, work.decode_tokens, work.context_tokens)
        return rows + self.prompt_token * work.prompt_tokens

    def reading(self, tokens: int, rows: int, steps: int) -> float:
        """Seconds of a prompt's tokens in so many steps beside decode rows; 0 before any step."""
        if not self._weight:
            return 0.0
        return self.prompt_token * tokens + steps * self.row(1, rows, 0)

    def observe(self, work: Work, seconds: float) -> None:
        """`seconds` from the step's plan to its commit, as the engine's clock saw it."""
        if seconds <= 0.0 or not work.parts:
            return
        units = (1.0, work.decode_tokens, work.prompt_tokens, work.context_tokens / CONTEXT_UNIT)
        x = [unit * prior / seconds for unit, prior in zip(units, _PRIOR, strict=True)]
        self._weight = KEPT * self._weight + 1.0
        self._scale += (1.0 / sum(x) - self._scale) / self._weight
        if self._weight == 1.0:
            self._theta = [self._scale] * len(_PRIOR)
        self._add(x)
        self._sweep()
        self._count(self.step(work))

    def _count(self, seconds: float) -> None:
        if self._steps % BLOCK_STEPS == 0:
            self._before, self._within = self._within, 0.0
        self._steps += 1
        self._within = max(self._within, seconds)

    def _add(self, x: list[float]) -> None:
        right = self._right
        for i, (row, value) in enumerate(zip(self._gram, x, strict=True)):
            right[i] = KEPT * right[i] + value
            for j, other in enumerate(x):
                row[j] = KEPT * row[j] + value * other

    def _sweep(self) -> None:
        """Once over the coefficients, from where the last step left them."""
        theta, pull = self._theta, PULL * self._weight / self._scale
        for j, row in enumerate(self._gram):
            rest = sum([a * b for a, b in zip(row, theta, strict=True)]) - row[j] * theta[j]
            wanted = self._right[j] + pull - rest
            theta[j] = max(0.0, wanted / (row[j] + pull / self._scale))

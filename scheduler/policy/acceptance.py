"""How likely drafts are accepted, by their position, for the model and for each sequence.

- A value is the chance that the draft at a position is accepted, given that all before it were.
- Memory is bounded: old samples fade. A faster mean beside each value notices a change that chance
  does not explain; from then on it is believed, and what was known of deeper positions is
  forgotten: it was learned from other text.
- A position that nobody tried borrows its predecessor's value. A sequence begins with the model's
  values and comes into its own as its rounds are counted: most replies are too short to be known.
"""

from __future__ import annotations

ACCEPTANCE_START = 0.6  # nobody has drafted yet
SEQUENCE_RATE = 0.05
MODEL_RATE = 0.02
FAST_RATE = 0.1
# A change: the faster mean lies four of its own standard deviations away from the value.
CHANGE_SQUARED = 4.0**2 * FAST_RATE / (2.0 - FAST_RATE)
CHANGE_SPREAD_MIN = 0.02  # of value * (1 - value): near 0 and 1 a single sample is no change
CHANGE_COUNT = 8  # samples that a value stands for after a change
OWN_COUNT_MAX = 20  # samples that a sequence's own value stands for
MODEL_COUNT = 8  # and the model's beside it


class Acceptance:
    """Chance that the draft at a position is accepted, given that all before it were. 0-based."""

    __slots__ = ("_fast", "_rate", "counts", "values")

    def __init__(self, depth_max: int, rate: float) -> None:
        """rate: the weight of a sample in a value of many."""
        self._rate = rate
        self._fast = [0.0] * depth_max
        self.values = [0.0] * depth_max
        self.counts = [0] * depth_max  # 0: the value means nothing

    def observe(self, position: int, accepted: bool, before: float) -> None:
        """`before` is what was believed of a position that has no sample yet: it counts as two."""
        count = self.counts[position]
        value = self.values[position] if count else before
        fast = self._fast[position] if count else before
        value += max(self._rate, 1.0 / (count + 3)) * (accepted - value)
        fast += FAST_RATE * (accepted - fast)
        count += 1
        spread = max(value * (1.0 - value), CHANGE_SPREAD_MIN)
        if count > CHANGE_COUNT and (fast - value) ** 2 > CHANGE_SQUARED * spread:
            value, count = fast, CHANGE_COUNT
            self.counts[position + 1 :] = [0] * (len(self.counts) - position - 1)
        self.values[position], self._fast[position], self.counts[position] = value, fast, count


def gains_of(own: Acceptance, model: Acceptance, depth: int) -> list[float]:
    """gains[j] is the chance that draft j + 1 of `depth` is emitted; never increasing."""
    chance, believed = 1.0, ACCEPTANCE_START
    gains = []
    for position in range(depth):
        if model.counts[position]:
            believed = model.values[position]
        here, count = believed, min(own.counts[position], OWN_COUNT_MAX)
        if count:
            mine = count * own.values[position]
            here = (MODEL_COUNT * believed + mine) / (MODEL_COUNT + count)
        chance *= here
        gains.append(chance)
    return gains

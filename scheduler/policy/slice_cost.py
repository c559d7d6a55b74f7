"""What a prompt's slice adds to a step, learned from the steps that had any.

- seconds = slices + tokens + tokens * keys: a slice costs something by itself, each token its
  matrices, and the more the further on in its prompt it stands, for it attends to all before it.
- Where somebody comes or goes in the same step, that has a price of its own, whatever is copied:
  else slices bear it, and where replies are short most steps are such.
- What is learned is what a step took beyond its decode rows, which others price (step_cost); beside
  rows, slices are small, and a token of them costs something else than one of a step of 512. So
  steps without rows count little, once there are others.
- No estimate is followed far: beside rows a step's slices have at most twice the tokens of the most
  that were seen there. The first ones go by the prior.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from sapwood.scheduler.policy.recent_line import RecentLine

# A slice, a token, a token's 1024 keys, and copies, where a step's base is 1: the ratios count.
_PRIOR = (0.02, 0.03, 0.001, 0.3)
KEYS_UNIT = 1024
_KEPT = 0.95  # of what a step counts, with each that follows
_PULL, _SWEEPS = 0.0002, 6  # slices are but a part of a step, and there are few such steps
OTHERS_WEIGHT = 0.05  # of a step without decode rows
YOUNG_STEPS = 8  # beside rows, that are believed as they are
# Of a whole step. What disturbs makes steps longer, so it is half as much above: two steps in three
# may lie there, as in what rows are learned to take.
ABOVE_MOST, BELOW_MOST = 0.15, 0.3
TOKEN_LEAST = 0.1  # of what the prior's proportion says: no token is free
BESIDE_TOKENS_START = 32


def keys_read(start: int, tokens: int) -> int:
    """Keys that the tokens [start, start + tokens) of a prompt attend to, summed over them."""
    return tokens * start + tokens * (tokens + 1) // 2


class Reading(NamedTuple):
    """What a step reads of prompts. keys: as keys_read says, summed over its slices."""

    slices: int = 0
    tokens: int = 0
    keys: int = 0

    @property
    def light(self) -> bool:
        """Whether a step with it is as good as one without."""
        return self.tokens <= 1

    @classmethod
    def of(cls, spans: Iterable[tuple[int, int]]) -> Reading:
        """Of slices that each begin at a position and have so many tokens."""
        slices = tokens = keys = 0
        for start, count in spans:
            slices, tokens, keys = slices + 1, tokens + count, keys + keys_read(start, count)
        return cls(slices, tokens, keys)


NO_READING = Reading()


class SliceCost:
    """Seconds of slices beside decode rows; in the prior's unit until any were seen."""

    __slots__ = ("_count", "_each", "_key", "_line", "_token", "copies_s", "tokens_seen")

    def __init__(self) -> None:
        self.tokens_seen = BESIDE_TOKENS_START  # the most of a step with decode rows
        self._count = 0  # of the steps with decode rows
        self._line = RecentLine(_PRIOR, _KEPT, _PULL, _SWEEPS)
        self._each, self._token, self._key, self.copies_s = self._line.coefficients

    @property
    def known(self) -> bool:
        """Whether any were seen."""
        return self._line.known

    @property
    def unit_s(self) -> float:
        """Seconds of what is 1 in the prior: a step's base, as far as slices can tell."""
        return self._line.scale

    def seconds(self, start: int, tokens: int) -> float:
        """Of the slice [start, start + tokens)."""
        return self.of(Reading(1, tokens, keys_read(start, tokens)))

    def of(self, reading: Reading, copied: bool = False) -> float:
        """Of all slices of a step, and of its copies if it made any."""
        keys = self._key * reading.keys / KEYS_UNIT
        found = self._each * reading.slices + self._token * reading.tokens + keys
        return found + self.copies_s if copied else found

    def tokens(self, start: int, seconds: float) -> int:
        """The longest slice from `start` on that takes no more than `seconds`."""
        room = seconds - self._each
        if room <= 0.0:
            return 0
        # room = bend n^2 + slope n, solved for n without cancellation.
        bend = self._key / (2 * KEYS_UNIT)
        slope = self._token + self._key * (start + 0.5) / KEYS_UNIT
        return int(2.0 * room / (slope + (slope * slope + 4.0 * bend * room) ** 0.5))

    def _believed(self, seconds: float, expected: float) -> float:
        """Not further from what was expected than these: of noise its lowest third is believed."""
        self._count += 1
        if self._count <= YOUNG_STEPS:
            return seconds
        return min(max(seconds, (1.0 - BELOW_MOST) * expected), (1.0 + ABOVE_MOST) * expected)

    def observe(
        self,
        reading: Reading,
        decode_s: float | None,
        seconds: float,
        *,
        beside_rows: bool,
        copied: bool = False,
    ) -> None:
        """A step took `seconds`, of which its decode rows, or its base without any, `decode_s`.

        None: nothing is known of that yet. The prior divides it then. beside_rows: it had some;
        others count little. copied: it copied prefixes too.
        """
        units = reading.slices, reading.tokens, reading.keys / KEYS_UNIT, int(copied)
        if decode_s is None:
            decode_s = seconds / (1.0 + self._line.in_prior(units))
        if beside_rows:
            seconds = self._believed(seconds, decode_s + self.of(reading, copied))
            self.tokens_seen = max(self.tokens_seen, reading.tokens)
        # Of a stall no more than that: it is nobody's price.
        decode_s = min(decode_s, 0.95 * seconds)
        self._line.observe(units, seconds, decode_s, 1.0 if beside_rows else OTHERS_WEIGHT)
        self._each, token, self._key, self.copies_s = self._line.coefficients
        self._token = max(token, TOKEN_LEAST * _PRIOR[1] * self._line.scale)

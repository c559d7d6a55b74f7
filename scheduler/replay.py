"""A committed round that is computed once more, plainly, and what that showed.

- `kept` is the device's: the logits that the round was drawn from. The core carries it, unread.
- Nothing of the tree and no slot is in it: a round is computed again from tokens alone, so that
  what is wrong in stored or live K/V is not what it is compared with.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class ReplayVerdict(Enum):
    """What became of a replay; the values of the mismatches are those of the metrics' label."""

    SAME = "same"
    NEAR_TIE = "near_tie"  # another token would be the best one, within what rounding does
    FAULT = "fault"  # a logit differs by more, or what was emitted does not follow from them
    SKIPPED = "skipped"  # the device had no memory for it: nothing is known


MISMATCHES = (ReplayVerdict.NEAR_TIE, ReplayVerdict.FAULT)


@dataclass(frozen=True, slots=True)
class Replay:
    """tokens: all that the sequence had evaluated with the round, whose own are the last `rows`.

    story: how they came to be, without a word of prompt or reply.
    """

    tokens: tuple[int, ...]
    rows: int
    kept: object
    story: str

    @property
    def start(self) -> int:
        """Where the round begins."""
        return len(self.tokens) - self.rows


@dataclass(frozen=True, slots=True)
class Replayed:
    """difference: of two logits at the same place, the largest; infinite where one is no number."""

    verdict: ReplayVerdict
    difference: float = 0.0

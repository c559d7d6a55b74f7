"""The source of chance of the corpus, and what decides which questions are never trained on.

Everything is drawn from one random.Random; a string is held out by its own hash, so that corpus
and evaluation agree without sharing anything.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

_T = TypeVar("_T")

HELD_OUT_OF_256 = 6


class Draw:
    def __init__(self, seed: int | str) -> None:
        self.random = random.Random(seed)

    def one(self, choices: Sequence[_T]) -> _T:
        return self.random.choice(choices)

    def some(self, choices: Sequence[_T], count: int) -> list[_T]:
        return self.random.sample(choices, count)

    def number(self, first: int, last: int) -> int:
        return self.random.randint(first, last)

    def happens(self, chance: float) -> bool:
        return self.random.random() < chance

    def weighted(self, choices: Sequence[tuple[_T, float]]) -> _T:
        values, weights = zip(*choices, strict=True)
        return self.random.choices(values, weights)[0]


def held_out(question: str) -> bool:
    """Whether a user's message belongs to the evaluation, whatever its case and punctuation."""
    plain = "".join(letter for letter in question.lower() if letter.isalnum())
    return hashlib.sha256(plain.encode()).digest()[0] < HELD_OUT_OF_256

"""How long replies have been: what a request is expected to take of memory, beside its prompt.

A wrong guess costs that somebody is parked, or waits who might have come: nothing that is promised.
"""

from __future__ import annotations

NEWEST_SHARE = 1 / 16


class ReplyLength:
    """A moving mean of the tokens of replies that came to an end."""

    def __init__(self, first_guess: int) -> None:
        """first_guess: before any ended, in tokens."""
        self._mean = float(first_guess)

    def observe(self, tokens: int) -> None:
        """One reply ended by itself."""
        self._mean += (tokens - self._mean) * NEWEST_SHARE

    def expected(self, emitted: int, tokens_max: int) -> int:
        """Tokens of a reply that has emitted so many, and may have tokens_max."""
        return min(tokens_max, max(emitted, round(self._mean)))

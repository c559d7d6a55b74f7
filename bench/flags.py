"""Values of the benchmarks' flags: what is no number that can be meant is refused as usage, exit 2.

Pure.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sequence

FLAG_COUNT_MAX, FLAG_S_MAX = 100_000, 7 * 86_400.0


def flag_count(text: str) -> int:
    """From 1 on. Raises ArgumentTypeError, or ValueError for what is no number."""
    value = int(text)
    if not 1 <= value <= FLAG_COUNT_MAX:
        raise argparse.ArgumentTypeError(f"must be from 1 to {FLAG_COUNT_MAX}")
    return value


def flag_one_of(names: Sequence[str]) -> Callable[[str], str]:
    """For any number of them, where argparse's `choices` would refuse none at all."""

    def one(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"must be of {', '.join(names)}")
        return text

    return one


def flag_s(text: str) -> float:
    """More than none and at most a week; nan is neither."""
    value = float(text)
    if not 0 < value <= FLAG_S_MAX:
        raise argparse.ArgumentTypeError(f"must be more than 0 and at most {FLAG_S_MAX:.0f}")
    return value


def flag_words(text: str) -> list[str]:
    """As a shell splits them; a quote that is left open is refused."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None

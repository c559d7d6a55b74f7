"""How what is short is parted, and when to ask again: pure functions of plain numbers.

- What somebody leaves of a fair share is the others' (max_min): nothing is kept for nobody.
"""

from __future__ import annotations

from collections.abc import Sequence

RETRY_S_MIN = 1.0


def max_min(demands: Sequence[float], weights: Sequence[float], capacity: float) -> list[float]:
    """What each gets of `capacity`: what it asks for, or by weight as much as all who get less.

    Weights are above 0.
    """
    shares = [0.0] * len(demands)
    left, weight = capacity, sum(weights)
    for i in sorted(range(len(demands)), key=lambda i: demands[i] / weights[i]):
        shares[i] = min(demands[i], left * weights[i] / max(weight, weights[i]))
        left -= shares[i]
        weight -= weights[i]
    return shares


def retry_after_s(queued: int, slots: int, duration_s: float, longest_s: float) -> float:
    """When a place in the queue may be free, if requests go on taking `duration_s` each."""
    return min(max(RETRY_S_MIN, duration_s * (queued + 1) / slots), longest_s)

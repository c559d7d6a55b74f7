"""When a call is made again, and how long after. Pure, and shared by both clients.

- Tried again is what the daemon refused with a time to retry before anything of the answer came:
  it says itself that this makes sense, and nothing was done that would be done twice.
- Never before that time, never after the call's deadline; a call without one is tried again for
  `RETRYING_S_MAX`, as long as a request may wait in the daemon's own queue.
- Later attempts wait up to twice as long, and each a little differently, so that many who were
  refused at once do not come back at once. Where that would be too late, it is the time told.
"""

from __future__ import annotations

from sapwood.client.errors import SapwoodError

RETRYING_S_MAX = 60.0
_WAIT_S_MIN = 0.02
_GROWTH, _GROWTH_MAX = 1.25, 2.0
_SPREAD = 0.5


class Attempts:
    """Of one call. Times are of one clock, in seconds."""

    def __init__(self, timeout_s: float | None, now_s: float) -> None:
        """timeout_s: of the whole call, waiting included; None has no end."""
        self._ends_at = None if timeout_s is None else now_s + timeout_s
        self._until = now_s + RETRYING_S_MAX if self._ends_at is None else self._ends_at
        self._growth = 1.0

    def left_s(self, now_s: float) -> float | None:
        """What gRPC gets as the timeout of the next attempt."""
        return None if self._ends_at is None else max(0.0, self._ends_at - now_s)

    def wait_s(self, refusal: SapwoodError, now_s: float, chance: float) -> float | None:
        """How long until the next attempt, None for none. chance: drawn evenly from [0, 1)."""
        if refusal.retry_after_s is None:
            return None
        told_s = max(refusal.retry_after_s, _WAIT_S_MIN)
        wait_s = told_s * self._growth * (1 + _SPREAD * chance)
        self._growth = min(self._growth * _GROWTH, _GROWTH_MAX)
        if now_s + wait_s >= self._until:
            wait_s = told_s
        return wait_s if now_s + wait_s < self._until else None

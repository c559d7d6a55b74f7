"""The clock and the dice of sapwood.client.attempts, which knows neither."""

from __future__ import annotations

import random
import time

from sapwood.client.attempts import Attempts
from sapwood.client.errors import SapwoodError


def attempts_within(timeout_s: float | None) -> Attempts:
    """Those of a call that begins now."""
    return Attempts(timeout_s, time.monotonic())


def timeout_s_of(attempts: Attempts) -> float | None:
    """What is left for an attempt that begins now."""
    return attempts.left_s(time.monotonic())


def pause_s(attempts: Attempts, refusal: SapwoodError) -> float | None:
    """How long from now until the next attempt; None for none."""
    return attempts.wait_s(refusal, time.monotonic(), random.random())

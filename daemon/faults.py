"""How a fault of ours is written to the log."""

from __future__ import annotations

import traceback


def described(fault: BaseException) -> str:
    """The fault's class and the frames it passed: never its text, which could quote a prompt."""
    return f"{type(fault).__name__}\n{''.join(traceback.format_tb(fault.__traceback__))}"

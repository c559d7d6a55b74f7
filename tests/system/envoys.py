"""Envoy, for tests that stand behind it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.outside import program


@contextmanager
def envoy(config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Started with this file and ended; its log lies beside it."""
    flags = ["--concurrency", "1", "--use-dynamic-base-id"]
    command = [str(program("envoy")), "-c", str(config), *flags]
    with config.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()

"""Daemon processes on the fake device, and what a test waits for of them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sapwood import AsyncClient, CacheStats, Client, Delta

ROOT = Path(__file__).parents[3]
SETTLE_S_MAX = 30.0
QUIET = 'log_level = "warning"\n'  # stderr has how a process ends, and no requests
WAIT_S_MAX = 60.0  # beside everything else that a machine does


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S_MAX
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextmanager
def started(folder: Path, step: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process of `tests.daemon.serve_fake`. options: Popen's, over pipes and no terminal."""
    config = folder / "c.toml"
    if not config.exists():
        config.write_text(QUIET)
    command = [sys.executable, "-m", "tests.daemon.serve_fake", step, str(folder)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    options = {**pipes, "start_new_session": True, **options}
    process = subprocess.Popen(command, cwd=ROOT, text=True, **options)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def serving(
    folder: Path,
    step: str,
    *,
    popen: dict[str, Any] | None = None,
    settings: dict[str, str] | None = None,
    **limits: float,
) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """A process that serves, and what its ready file says. settings: of its configuration."""
    told = {"log_level": "warning", **(settings or {})}
    (folder / "c.toml").write_text(
        "".join(f"{name} = {text!r}\n" for name, text in told.items())
        + "[limits]\n"
        + "\n".join(f"{k} = {v}" for k, v in limits.items())
    )
    with started(folder, step, **(popen or {})) as process:
        yield process, json.loads(appeared(folder / "ready.json", process).read_text())


def appeared(path: Path, process: subprocess.Popen[str]) -> Path:
    """The file, once it is there."""

    def is_there() -> bool:
        assert process.poll() is None, process.communicate()
        return path.exists()

    wait_for(is_there)
    return path


def first_delta(client: Client) -> Any:
    """A long reply that has begun."""
    stream = client.generate([5, 6, 7], max_tokens=4000, draft_tokens=0)
    for event in stream:
        if isinstance(event, Delta):
            break
    return stream


def wait_draining(client: Client) -> None:
    wait_for(lambda: not client.is_serving())


def ended(process: subprocess.Popen[str], folder: Path) -> tuple[int, str, str]:
    """Its exit code, stdout and stderr; what others find it by is gone."""
    out, err = process.communicate(timeout=WAIT_S_MAX)
    left = {path.name for path in folder.iterdir()} - {"c.toml", "loading"}
    assert left == set(), "neither ready file nor socket, nor what stood in for them"
    return process.returncode, out, err


async def at_rest(address: str) -> CacheStats:
    """The daemon's own account once nobody runs: it ends what is cancelled, but not at once."""
    deadline = time.monotonic() + SETTLE_S_MAX
    async with AsyncClient(address) as client:
        while True:
            stats = await client.cache_stats()
            memory = stats.memory
            if not (memory.live_bytes or memory.workspace_bytes or stats.leased_bytes):
                return stats
            assert time.monotonic() < deadline, f"R2: {stats}"
            await asyncio.sleep(0.01)

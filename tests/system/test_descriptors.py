"""A daemon that may open nothing more: what runs goes on, and little is written about it."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from sapwood import Client, Conversation
from tests.model.reference import FIXTURES, checkpoint, copied
from tests.system import features
from tests.test_rooms import ROOT

WAIT_S_MAX = 60.0
CROWD_S = 5.0  # for what a log line in a loop adds up to
LOG_BYTES_MAX = 10_000


@contextlib.contextmanager
def watched(folder: Path, *model: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of `tests.system.serve_watched` that serves; its log is `err` in the folder."""
    command = [sys.executable, "-m", "tests.system.serve_watched", str(folder), *map(str, model)]
    with (folder / "err").open("wb") as err:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=err)
    try:
        wait_for(lambda: (folder / "ready.json").exists() or process.poll() is not None)
        assert process.poll() is None, (folder / "err").read_text()
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S_MAX
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextlib.contextmanager
def nothing_to_open(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Inside, whatever the process tries to open fails. Where the system can do that to others."""
    if not hasattr(resource, "prlimit"):
        yield
        return
    limits = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (0, limits[1]))
    yield
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, limits)


@contextlib.contextmanager
def crowd(folder: Path) -> Iterator[None]:
    """Connections to all its sockets that nobody can accept."""
    host, _, port = json.loads((folder / "ready.json").read_text())["metrics"].rpartition(":")
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=5))
            local = stack.enter_context(socket.socket(socket.AF_UNIX))
            local.setblocking(False)
            local.connect_ex(os.fspath(folder / "s"))
        yield


def with_every_template(place: Path) -> tuple[Path, Path]:
    """A reference pair whose template has a place for tools and thinking."""
    target = copied("e2b-tiny", place, weights=True).path
    shutil.copy(FIXTURES / "chat/template.jinja", target / "chat_template.jinja")
    return target, checkpoint("e2b-tiny-assistant").path


def assert_unmoved(folder: Path, conversations: list[Conversation], *model: Path) -> None:
    with watched(folder, *model) as process:
        with Client(f"unix:{folder / 's'}") as client:
            assert client.is_serving()
            with nothing_to_open(process), crowd(folder):
                begun = time.monotonic()
                features.ask_everything(client, conversations)
                time.sleep(max(0.0, CROWD_S - (time.monotonic() - begun)))
        with grpc.insecure_channel(f"unix:{folder / 's'}") as channel:
            features.ask_beside(channel)
        features.scrape(folder / "ready.json")
        process.terminate()
        assert process.wait(WAIT_S_MAX) == 0
    assert (folder / "imports").read_text() == "", "late imports, by thread"
    assert len((folder / "err").read_bytes()) < LOG_BYTES_MAX


@pytest.mark.long
def test_the_bundled_pair_serves_with_nothing_to_open_and_nothing_to_import(folder: Path) -> None:
    assert_unmoved(folder, features.PLAIN)


def test_tools_and_thinking_need_nothing_to_open_and_nothing_to_import(folder: Path) -> None:
    assert_unmoved(folder, features.WITH_TOOLS, *with_every_template(folder / "pair"))

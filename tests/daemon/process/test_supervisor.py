"""What systemd hears of a daemon, at a socket of the test's own."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from sapwood.daemon.process.supervisor import Supervisor
from tests.daemon.process.processes import WAIT_S_MAX, ended, serving

pytestmark = pytest.mark.anyio


@contextmanager
def listening(address: str | bytes) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inlet:
        inlet.bind(address)
        inlet.settimeout(WAIT_S_MAX)
        yield inlet


def waiting(inlet: socket.socket) -> list[bytes]:
    """All that has arrived."""
    found = []
    inlet.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            found.append(inlet.recv(4096))
    return found


def test_a_daemon_says_that_it_serves_lives_and_drains(folder: Path) -> None:
    with listening(f"{folder}/n") as inlet:
        told = {"NOTIFY_SOCKET": f"{folder}/n", "WATCHDOG_USEC": "600000000"}
        with serving(folder, "0", popen={"env": os.environ | told}) as (process, _):
            assert inlet.recv(4096) == b"WATCHDOG=1"  # of which systemd takes none before the next
            assert inlet.recv(4096).splitlines()[0] == b"READY=1"
            process.send_signal(signal.SIGTERM)
            assert inlet.recv(4096).splitlines()[0] == b"STOPPING=1"
            (folder / "n").unlink()
            assert ended(process, folder)[0] == 0


async def test_there_is_no_sign_of_life_while_the_engine_is_quiet(folder: Path) -> None:
    healthy, asked = True, 0

    def is_healthy() -> bool:
        nonlocal asked
        asked += 1
        return healthy

    async def again(times: int) -> None:
        until = asked + times
        while asked < until:  # noqa: ASYNC110 (no event tells how often it was asked)
            await asyncio.sleep(0)

    with listening(f"{folder}/n") as inlet:
        watching = asyncio.ensure_future(Supervisor(f"{folder}/n", 0.01).watch(is_healthy))
        await again(3)
        assert waiting(inlet) == [b"WATCHDOG=1"] * 3
        healthy = False
        waiting(inlet)
        await again(3)
        assert waiting(inlet) == []
        watching.cancel()


async def test_nobody_hears_of_who_was_started_otherwise(folder: Path) -> None:
    """A daemon without systemd, or a child of one that has it; a socket that nobody reads."""
    timed = {"NOTIFY_SOCKET": f"{folder}/n", "WATCHDOG_USEC": "1000"}
    for environ in (
        {"WATCHDOG_USEC": "1000"},
        {"NOTIFY_SOCKET": f"{folder}/n"},
        timed | {"WATCHDOG_PID": "1"},
        timed | {"WATCHDOG_USEC": "-5"},
    ):
        supervisor = Supervisor.of(environ)
        supervisor.ready()  # to nobody, and no error
        await supervisor.watch(lambda: pytest.fail("who waits for it?"))
    assert os.listdir(folder) == []


@pytest.mark.skipif(sys.platform != "linux", reason="abstract addresses are Linux's")
def test_an_address_may_be_abstract() -> None:
    name = f"sapwood-test-{os.getpid()}"
    with listening(f"\0{name}") as inlet:
        Supervisor.of({"NOTIFY_SOCKET": f"@{name}"}).stopping()
        assert inlet.recv(4096).splitlines()[0] == b"STOPPING=1"

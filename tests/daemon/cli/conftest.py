"""A daemon for commands to talk to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import pytest

from sapwood.daemon.process.server import Daemon
from sapwood.daemon.settings.config import Config
from sapwood.scheduler.limits import Limits
from tests.daemon.conftest import config_for
from tests.daemon.fakes import FakeDevice, make_loader


@contextmanager
def serving(config: Config) -> Iterator[str]:
    """The address of a daemon in a thread of its own, as the commands block."""
    addresses: list[str] = []
    started, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        daemon = Daemon(config, make_loader(FakeDevice(), Limits()))
        await daemon.start()
        await daemon.wait_loaded()
        addresses.extend(map(str, daemon.grpc_addresses))
        started.set()
        await anyio.to_thread.run_sync(stop.wait)
        await daemon.stop()

    thread = threading.Thread(target=anyio.run, args=(serve,))
    thread.start()
    started.wait()
    yield addresses[0]
    stop.set()
    thread.join()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving(config_for()) as address:
        yield address

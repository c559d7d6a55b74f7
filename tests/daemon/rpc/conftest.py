"""A daemon for a test, and one whose device waits for it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from sapwood.scheduler.limits import Limits
from tests.daemon.conftest import Running, running
from tests.daemon.fakes import FakeDevice

ONE_SLOT = Limits(slots_max=1)
PROMPT = tuple(range(5, 60))


@pytest.fixture
async def run() -> AsyncIterator[Running]:
    async with running() as run:
        yield run


@pytest.fixture
async def gated() -> AsyncIterator[Running]:
    async with running(FakeDevice(gated=True), ONE_SLOT) as run:
        yield run

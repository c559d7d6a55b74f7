"""A fake daemon for a test, and both kinds of client to talk to it."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest

import sapwood
from tests.sapwood.client.fake import FakeDaemon, serving, whole_reply


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(params=["sync", "async"])
def connect(request):
    """Opens a client of the one or the other kind."""

    @asynccontextmanager
    async def opened(address):
        if request.param == "sync":
            with sapwood.Client(address) as client:
                yield client
        else:
            async with sapwood.AsyncClient(address) as client:
                yield client

    return opened


@pytest.fixture
def daemon():
    return FakeDaemon(whole_reply)


@pytest.fixture
def address(daemon):
    with serving(daemon, "127.0.0.1:0") as address:
        yield address

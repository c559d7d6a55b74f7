"""A fake daemon for a test, and both kinds of client to talk to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

import sapwood
from tests.sapwood.client.fake import FakeDaemon, serving, whole_reply

Either = sapwood.Client | sapwood.AsyncClient
Connect = Callable[[str], AbstractAsyncContextManager[Either]]


@pytest.fixture(scope="package")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="package", autouse=True)
async def one_loop(anyio_backend: str) -> AsyncIterator[None]:
    """All tests here share one event loop, as an application's clients do.

    grpc.aio brings the end of a call some time after it; to a loop that was closed meanwhile it
    would come as an error in the next one.
    """
    yield  # noqa: PT022 (while it waits here, the loop is kept)


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Connect:
    """Opens a client of the one or the other kind."""

    @asynccontextmanager
    async def opened(address: str) -> AsyncIterator[Either]:
        if request.param == "sync":
            with sapwood.Client(address) as client:
                yield client
        else:
            async with sapwood.AsyncClient(address) as client:
                yield client

    return opened


@pytest.fixture
def daemon() -> FakeDaemon:
    return FakeDaemon(whole_reply)


@pytest.fixture
def address(daemon: FakeDaemon) -> Iterator[str]:
    with serving(daemon, "127.0.0.1:0") as address:
        yield address

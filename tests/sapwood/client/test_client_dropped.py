"""Streams and clients that nobody holds any more end on the daemon, and say nothing."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import sapwood
from sapwood.v1 import cache_pb2
from tests.sapwood.client.fake import FakeDaemon, each, endless_reply, read_to_a_delta
from tests.test_rooms import ROOT

pytestmark = pytest.mark.anyio

ENDED_S = 2.0  # about a second, on a machine with other work


async def broken_off(client: sapwood.AsyncClient) -> None:
    async for _ in client.generate("hello"):
        break


async def failed(client: sapwood.AsyncClient) -> None:
    try:
        async for _ in client.generate("hello"):
            raise LookupError
    except LookupError:
        pass


async def let_go(client: sapwood.AsyncClient) -> None:
    await anext(client.generate("hello"))


async def let_go_by_another_thread(client: sapwood.AsyncClient) -> None:
    held = [client.generate("hello")]
    await read_to_a_delta(held[0])
    thread = threading.Thread(target=held.clear)
    thread.start()
    await asyncio.to_thread(thread.join)


async def the_loop_of_a_tree_left(client: sapwood.AsyncClient) -> None:
    async for _ in client.describe_tree():
        break


async def hold(client: sapwood.AsyncClient) -> None:
    stream = client.generate("hello")
    await read_to_a_delta(stream)
    await asyncio.sleep(60)
    await stream.collect()


async def cancelled_and_forgotten(client: sapwood.AsyncClient) -> None:
    task = asyncio.create_task(hold(client))
    await asyncio.sleep(0.2)
    task.cancel()
    await asyncio.wait([task])


Leave = Callable[[sapwood.AsyncClient], Coroutine[Any, Any, None]]
WAYS = [
    broken_off,
    failed,
    let_go,
    let_go_by_another_thread,
    the_loop_of_a_tree_left,
    cancelled_and_forgotten,
]


@pytest.fixture
def endless(daemon: FakeDaemon) -> FakeDaemon:
    daemon.reply = endless_reply
    daemon.nodes = itertools.repeat(cache_pb2.TreeNode(id=1))
    return daemon


@pytest.mark.parametrize("leave", WAYS)
async def test_a_dropped_stream_ends_on_the_daemon(
    endless: FakeDaemon, address: str, leave: Leave
) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    async with sapwood.AsyncClient(address) as client:
        await leave(client)
        assert await asyncio.to_thread(endless.ended.wait, ENDED_S)
    assert told == []


async def test_a_cancelled_reader_that_is_kept_keeps_no_stream(
    endless: FakeDaemon, address: str
) -> None:
    """Its traceback holds the frame, and so the stream, for as long as somebody has the task."""
    async with sapwood.AsyncClient(address) as client:
        task = asyncio.create_task(hold(client))
        await asyncio.sleep(0.2)
        task.cancel()
        (result,) = await asyncio.gather(task, return_exceptions=True)
        assert await asyncio.to_thread(endless.ended.wait, ENDED_S)
        assert isinstance(result, asyncio.CancelledError)


async def test_a_stream_outlives_readers_that_hand_it_on(daemon: FakeDaemon, address: str) -> None:
    async with sapwood.AsyncClient(address) as client:
        stream = client.generate("hello")

        async def read_and_wait() -> None:
            await anext(stream)
            await asyncio.sleep(60)

        first = asyncio.create_task(read_and_wait())
        await asyncio.sleep(0.2)
        assert isinstance(await anext(stream), sapwood.Prefill)
        first.cancel()  # it is not the one who read last
        await asyncio.wait([first])
        assert await stream.text() == "Hi there"


async def test_a_stream_outlives_its_client(daemon: FakeDaemon, address: str) -> None:
    """A client that is dropped, not closed, is there as long as somebody reads from it."""
    assert sapwood.Client(address).generate("hello").text() == "Hi there"
    assert await sapwood.AsyncClient(address).generate("hello").text() == "Hi there"


async def test_a_dropped_client_ends_its_dropped_streams(endless: FakeDaemon, address: str) -> None:
    for kind in sapwood.Client, sapwood.AsyncClient:
        endless.ended.clear()
        stream: Any = kind(address).generate("hello")
        async for _ in each(stream):
            break
        assert not endless.ended.is_set()
        del stream
        assert await asyncio.to_thread(endless.ended.wait, ENDED_S)


SILENT = """
import asyncio, sys
import sapwood

async def left_open(address):
    client = sapwood.AsyncClient(address)
    stream = client.generate("hello")
    await anext(stream)
    client.generate("never read")
    async for _ in client.describe_tree():
        break
    return client, stream

async def dropped(address):
    await left_open(address)
    await asyncio.sleep(0.3)  # gRPC logs what ends between two loops, in the second

def of_threads(address):
    client = sapwood.Client(address)
    stream = client.generate("hello")
    next(stream)
    return client, stream

address = sys.argv[1]
asyncio.run(dropped(address))
asyncio.run(dropped(address))
of_threads(address)
asyncio.run(left_open(address))  # dropped when the loop is closed
kept = of_threads(address)
"""


async def test_nothing_is_said_where_nothing_was_closed(endless: FakeDaemon, address: str) -> None:
    """Neither after the loop is closed nor at the interpreter's end."""
    command = [sys.executable, "-W", "error", "-c", SILENT, address]
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

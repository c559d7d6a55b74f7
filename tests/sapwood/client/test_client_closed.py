"""A client that was closed says Cancelled, whatever is called, and nothing if closed again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import sapwood
from tests.sapwood.client.conftest import Connect
from tests.sapwood.client.fake import (
    FakeDaemon,
    done,
    each,
    endless_reply,
    read_to_a_delta,
)

pytestmark = pytest.mark.anyio

CALLS: dict[str, Callable[[Any], Any]] = {
    "generate": lambda client: client.generate("hello").collect(),
    "parse": lambda client: client.parse("hello", bool),
    "run_tools": lambda client: client.run_tools([], []),
    "tokenize": lambda client: client.tokenize("hello"),
    "detokenize": lambda client: client.detokenize([7]),
    "get_model": lambda client: client.get_model(),
    "cache_stats": lambda client: client.cache_stats(),
    "describe_tree": lambda client: client.describe_tree(),
    "pin_prefix": lambda client: client.pin_prefix("hello"),
    "list_pins": lambda client: client.list_pins(),
    "unpin_prefix": lambda client: client.unpin_prefix("a"),
    "evict_prefix": lambda client: client.evict_prefix("hello"),
    "clear_cache": lambda client: client.clear_cache(),
    "create_session": lambda client: client.create_session(),
    "get_session": lambda client: client.get_session("a"),
    "list_sessions": lambda client: client.list_sessions(),
    "delete_session": lambda client: client.delete_session("a"),
    "fork_session": lambda client: client.fork_session("a"),
    "rollback_session": lambda client: client.rollback_session("a", 0),
    "is_serving": lambda client: client.is_serving(),
}


async def finished(result: Any) -> None:
    """Waits for the answer of a call, or reads a stream to its end."""
    if hasattr(result, "__iter__") or hasattr(result, "__aiter__"):
        async for _ in each(result):
            pass
    else:
        await done(result)


@pytest.mark.parametrize("kind", [sapwood.Client, sapwood.AsyncClient])
def test_every_call_is_listed(kind: type) -> None:
    methods = {name for name in dir(kind) if not name.startswith("_")}
    assert methods - {"close"} == CALLS.keys()


@pytest.mark.parametrize("call", CALLS)
async def test_a_call_on_a_closed_client_is_cancelled(
    connect: Connect, address: str, call: str
) -> None:
    async with connect(address) as client:
        await done(client.is_serving())
        await done(client.close())
        with pytest.raises(sapwood.Cancelled, match="CANCELLED: the client is closed"):
            await finished(CALLS[call](client))
        await done(client.close())


async def test_a_stream_of_a_closed_client_is_cancelled(
    connect: Connect, daemon: FakeDaemon, address: str
) -> None:
    daemon.reply = endless_reply
    async with connect(address) as client:
        stream = client.generate("hello")
        await read_to_a_delta(stream)
        await done(client.close())
        for _ in range(2):
            with pytest.raises(sapwood.Cancelled, match="the client is closed"):
                await finished(stream)
        with pytest.raises(sapwood.Cancelled, match="the client is closed"):
            await done(stream.text())
        stream.cancel()


async def test_what_was_read_before_is_there_after(connect: Connect, address: str) -> None:
    async with connect(address) as client:
        stream = client.generate("hello")
        await done(stream.collect())
    assert (await done(stream.collect())).text == "Hi there"
    stream.cancel()


@pytest.mark.parametrize("call", ["generate", "tokenize"])
async def test_closing_ends_what_is_under_way(
    connect: Connect, daemon: FakeDaemon, address: str, call: str
) -> None:
    """And no task of the caller's is told that it was cancelled."""
    daemon.reply = endless_reply
    async with connect(address) as client:
        with daemon.held():
            waiting = asyncio.create_task(_in_the_background(client, CALLS[call]))
            await asyncio.to_thread(daemon.called.wait, 10)
            await done(client.close())
            with pytest.raises(sapwood.Cancelled, match="the client is closed"):
                await asyncio.wait_for(waiting, 10)


async def _in_the_background(client: Any, call: Callable[[Any], Any]) -> None:
    if isinstance(client, sapwood.Client):
        await asyncio.to_thread(call, client)
    else:
        await call(client)

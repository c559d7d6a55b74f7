"""Both clients against a daemon whose connections break again and again: each token comes once."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import anyio
import pytest

import sapwood
from tests.daemon.conftest import Running, running, until
from tests.daemon.fakes import FIRST_BYTE, reply_to
from tests.daemon.rpc.turns import PROMPT
from tests.quick import few_quick

pytestmark = pytest.mark.anyio

TOKENS = 300
OPTIONS: dict[str, Any] = {"max_tokens": TOKENS, "temperature": 0.0}


class Breaker:
    """Between clients and a daemon: cuts each of its first `cuts` connections.

    After so many bytes of the daemon's, and not before `may_cut` is set.
    """

    def __init__(self, address: str, after_bytes: int, cuts: int) -> None:
        self.may_cut = threading.Event()
        host, _, port = address.rpartition(":")
        self._daemon = host, int(port)
        self._after, self._left = after_bytes, cuts
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.cut = 0
        self._start(self._accept)

    def close(self) -> None:
        self.may_cut.set()
        for end in (self._listener, *self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        while self._threads:
            self._threads.pop().join()
        for end in (self._listener, *self._ends):
            end.close()

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=work, args=arguments))
        self._threads[-1].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                daemon = socket.create_connection(self._daemon)
                self._ends += [client, daemon]
                self._start(self._pass_on, client, daemon, None)
                self._start(self._pass_on, daemon, client, self._after if self._left else None)

    def _pass_on(self, source: socket.socket, to: socket.socket, limit: int | None) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(256):
                passed += len(data)
                if limit is not None and passed > limit and self._left:
                    self.may_cut.wait()
                    self._left, self.cut = self._left - 1, self.cut + 1
                    break
                to.sendall(data)
        for end in (source, to):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def broken(run: Running, after_bytes: int, cuts: int) -> Iterator[tuple[str, Breaker]]:
    breaker = Breaker(run.address, after_bytes, cuts)
    try:
        yield breaker.address, breaker
    finally:
        breaker.close()


def nothing() -> None:
    """Of a test that waits for no event."""


async def told(
    kind: str, address: str, heard: Callable[[], None] = nothing, **options: Any
) -> sapwood.Reply:
    """A reply whose events are checked as they come; `heard` is called at each."""
    seen: list[sapwood.Event] = []
    if kind == "async":
        async with sapwood.AsyncClient(address) as client:
            stream = client.generate(PROMPT, timeout=60, **OPTIONS, **options)
            async for event in stream:
                seen.append(event)
                heard()
            reply = await stream.collect()
    else:
        reply = await anyio.to_thread.run_sync(partial(_told, address, seen, heard, options))
    kinds = [type(event) for event in seen]
    first = kinds.index(sapwood.Delta)
    assert sapwood.Prefill not in kinds[first:], "the order of events is as of one stream"
    assert kinds.count(sapwood.Finish) == 1
    return reply


def _told(
    address: str, seen: list[sapwood.Event], heard: Callable[[], None], options: dict[str, Any]
) -> sapwood.Reply:
    with sapwood.Client(address) as client:
        stream = client.generate(PROMPT, timeout=60, **OPTIONS, **options)
        for event in stream:
            seen.append(event)
            heard()
        return stream.collect()


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("after_bytes", few_quick([400, 700], 700))
async def test_n3_a_stream_goes_on_behind_each_cut(kind: str, after_bytes: int) -> None:
    async with running() as run:
        with broken(run, after_bytes, 3) as (address, breaker):
            breaker.may_cut.set()
            reply = await told(kind, address, resumable=True)
        assert breaker.cut > 0, "or this tests nothing"
        assert list(reply.token_ids) == reply_to(PROMPT, TOKENS)
        assert reply.text.encode() == bytes(i - FIRST_BYTE for i in reply.token_ids)
        assert reply.finish.usage.completion_tokens == TOKENS


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_stream_of_a_session_goes_on_by_itself_and_others_end(kind: str) -> None:
    async with running() as run, sapwood.AsyncClient(run.address) as client:
        session = await client.create_session("a", ttl=60)
        with broken(run, 500, 1) as (address, breaker):
            # Where it had heard nothing, the client could not say where it was.
            reply = await told(kind, address, breaker.may_cut.set, session=session)
            assert breaker.cut == 1
        held = await client.get_session("a", include_tokens=True)
        assert (
            list(held.token_ids) == [*PROMPT, *reply.token_ids] and len(reply.token_ids) == TOKENS
        )
        with broken(run, 500, 1) as (address, breaker):
            breaker.may_cut.set()
            with pytest.raises(sapwood.SapwoodError) as caught:
                await told(kind, address)
        assert caught.value.cut and not caught.value.reason
        await until(lambda: not len(run.daemon._gate.mailboxes))


async def test_sessions_are_plain_values() -> None:
    async with running() as run, sapwood.AsyncClient(run.address) as client:
        made = await client.create_session("b", ttl=90.5)
        assert (made.name, made.tokens, made.ttl, made.busy) == ("b", 0, 90.5, False)
        assert made.expire_time is not None and made.expire_time > made.create_time
        await client.generate([5, 6, 7], session=made, max_tokens=2).collect()
        fork = await client.fork_session(made, at_token=4)
        assert fork.tokens == 4 and (await client.get_session("b")).tokens == 5
        assert (await client.rollback_session("b", 3)).tokens == 3
        held = await client.get_session(made, include_tokens=True)
        assert held.token_ids == (5, 6, 7)
        assert [each.name for each in await client.list_sessions()] == sorted(["b", fork.name])
        await client.delete_session(fork)
        with pytest.raises(sapwood.NotFound):
            await client.get_session(fork.name)
        with sapwood.Client(run.address) as other:
            names = await anyio.to_thread.run_sync(other.list_sessions)
            assert [each.name for each in names] == ["b"]

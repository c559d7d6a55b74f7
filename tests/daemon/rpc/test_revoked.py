"""A tenant whose last token was taken back leaves nothing, and nobody else loses anything."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import SimpleNamespace
from typing import cast

import anyio
import grpc
import pytest

from sapwood import AsyncClient
from sapwood.daemon.rpc.gate import Gate
from sapwood.daemon.rpc.principals import Directory
from sapwood.daemon.rpc.revoked import Revoked
from sapwood.daemon.settings.principals import Role
from sapwood.scheduler.limits import Limits
from sapwood.v1 import generation_pb2 as pb
from sapwood.v1 import prompt_pb2
from sapwood.v1 import session_pb2 as sessions
from tests.daemon.conftest import Running, collect, running, until
from tests.daemon.tenants import Shown, Tokens, shown

pytestmark = pytest.mark.anyio

ERASED = "what was kept of it is erased"
SOON = Limits(reload_s=0.02)


async def talks(run: Running, who: Shown) -> None:
    """A session with one turn."""
    await run.sessions.CreateSession(sessions.CreateSessionRequest(name="a"), metadata=who)
    prompt = prompt_pb2.TokenIds(ids=range(5, 60))
    request = pb.GenerateRequest(token_ids=prompt, session="a", max_tokens=3)
    await collect(run.generation.Generate(request, metadata=who))


async def sessions_of(run: Running, who: Shown) -> list[str]:
    listed = await run.sessions.ListSessions(sessions.ListSessionsRequest(), metadata=who)
    return [session.name for session in listed.sessions]


async def nodes(run: Running, token: str) -> int:
    async with AsyncClient(run.address, token=token) as client:
        return len([node async for node in client.describe_tree()])


async def test_who_has_no_token_any_more_leaves_nothing(
    tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = Tokens(tmp_path_factory.mktemp("t"))
    alice, bob = shown(tokens.new("alice")), shown(tokens.new("bob"))
    ops = tokens.new("ops", Role.OPERATOR)
    settings = {"tokens": str(tokens.path)}
    async with running(limits=SOON, settings=settings) as run:
        for who in (alice, bob):
            await talks(run, who)
        before = await nodes(run, ops)
        with caplog.at_level("INFO"):
            tokens.take_back("alice")
            await until(lambda: ERASED in caplog.text)
        assert f"alice has no token any more: {ERASED}" in caplog.text
        assert "bob" not in caplog.text
        assert await nodes(run, ops) * 2 == before > 0
        assert await sessions_of(run, bob) == ["a"]
        again, seen = shown(tokens.new("alice")), None
        while seen is None:  # until the file was read again
            with suppress(grpc.aio.AioRpcError):
                seen = await sessions_of(run, again)
            await anyio.sleep(0.02)
        assert seen == []


async def test_who_has_another_token_or_a_pool_keeps_what_is_its(
    tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """alice has two tokens, carol's prefixes are her pool's; carol's sessions are her own."""
    tokens = Tokens(tmp_path_factory.mktemp("t"))
    first, second = tokens.new("alice"), tokens.new("alice")
    carol, ops = shown(tokens.new("carol")), tokens.new("ops", Role.OPERATOR)
    settings = {"tokens": str(tokens.path), "principals": {"carol": {"pool": "team"}}}
    async with running(limits=SOON, settings=settings) as run:
        for who in (shown(first), carol):
            await talks(run, who)
        before = await nodes(run, ops)
        lines = tokens.path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if first.split("_")[1] not in line]
        with caplog.at_level("INFO"):
            tokens.path.write_text("".join(kept))
            tokens.take_back("carol")
            await until(lambda: ERASED in caplog.text)
        assert "carol has no token" in caplog.text and "alice" not in caplog.text
        assert await nodes(run, ops) == before
        assert await sessions_of(run, shown(second)) == ["a"]


async def test_who_is_missing_for_a_moment_keeps_all() -> None:
    """A file that is written anew is empty before it is whole."""
    erased: list[str] = []

    class Looking(Revoked):
        async def _forget(self, name: str) -> None:
            erased.append(name)

    both, nobody, bob = frozenset({"alice", "bob"}), frozenset[str](), frozenset({"bob"})
    directory = SimpleNamespace(token_names=both)
    revoked = Looking(cast("Gate", SimpleNamespace(serving=True)), cast("Directory", directory), ())
    for names in (nobody, both, bob, both, bob):
        directory.token_names = names
        revoked.look()
        await asyncio.sleep(0)
        assert not erased
    revoked.look()
    await asyncio.sleep(0)
    assert erased == ["alice"]
    for _ in range(3):
        revoked.look()
        await asyncio.sleep(0)
    assert erased == ["alice"]

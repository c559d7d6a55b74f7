"""What one principal's requests leave and find: nothing of another's, and nobody else's tree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest

from sapwood.daemon.rpc.principals import Directory, root_key
from sapwood.daemon.settings.principals import PrincipalSettings, Role
from sapwood.v1 import cache_pb2
from tests.daemon.conftest import Running, collect, prompt_of, reason_of, running
from tests.daemon.rpc.conftest import PROMPT
from tests.daemon.tenants import Shown, Tokens, shown

pytestmark = pytest.mark.anyio
LIST = cache_pb2.ListPinsRequest()


async def found(run: Running, metadata: Shown, **fields: Any) -> tuple[int, int]:
    """Cached tokens as prefill and as usage say."""
    request = prompt_of(*PROMPT, max_tokens=3, **fields)
    _, _, events = await collect(run.generation.Generate(request, metadata=metadata))
    return events[0].prefill.cached_tokens, events[-1].finish.usage.cached_tokens


async def test_r9_the_same_prompt_of_two_principals_finds_nothing(folder: Path) -> None:
    tokens = Tokens(folder)
    alice, bob = shown(tokens.new("alice")), shown(tokens.new("bob"))
    again = shown(tokens.new("alice"))
    async with running(settings={"tokens": str(tokens.path)}) as run:
        assert await found(run, alice) == (0, 0)
        assert await found(run, bob) == (0, 0)
        warm = len(PROMPT) - 1
        assert await found(run, alice) == (warm, warm)
        assert await found(run, again) == (warm, warm)  # another token, the same principal
        assert await found(run, bob) == (warm, warm)


async def test_r9_who_waits_for_a_prefix_waits_for_none_of_anothers(folder: Path) -> None:
    """Two cold requests of one principal share one prefill; those of two do not."""
    tokens = Tokens(folder)
    names = ("alice", "bob", "alice")
    metadata = [shown(tokens.new(name)) for name in names]
    async with running(settings={"tokens": str(tokens.path)}) as run:
        calls = [
            run.generation.Generate(prompt_of(*PROMPT, max_tokens=3), metadata=each)
            for each in metadata
        ]
        found = [(await collect(call))[2][-1].finish.usage.cached_tokens for call in calls]
    assert found[1] == 0
    assert sorted(found[::2]) == [0, len(PROMPT) - 1]  # whichever came first


async def test_a_pool_is_shared_by_who_is_named_into_it(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    tables = {"alice": "team", "bob": "team", "carol": "bob"}
    file.write_text("".join(f'[principals.{n}]\npool = "{p}"\n' for n, p in tables.items()))
    tokens = Tokens(folder)
    alice, bob, carol = (shown(tokens.new(name)) for name in tables)
    settings = {"tokens": str(tokens.path), "config": str(file)}
    async with running(settings=settings) as run:
        assert await found(run, alice) == (0, 0)
        assert (await found(run, bob))[1] == len(PROMPT) - 1
        assert await found(run, carol) == (0, 0)


async def test_a_certificate_and_a_token_of_one_name_are_one_principal() -> None:
    directory = Directory({})
    named = directory.named("bob")
    assert directory.by_certificate((), ("bob",)).principal == named
    assert directory.by_certificate(("spiffe://bob",), ("bob",)).principal.name == "spiffe://bob"


def test_salts_differ_by_name_and_pool_and_roots_by_model_too() -> None:
    settings = {
        "a": PrincipalSettings(),
        "b": PrincipalSettings(pool="a"),
        "c": PrincipalSettings(pool="a"),
    }
    a, b, c, d = (Directory(settings).named(name) for name in "abcd")
    assert b.salt == c.salt
    assert len({a.salt, b.salt, d.salt}) == 3
    salts = (a.salt, b.salt, d.salt)
    roots = {root_key(model, salt) for model in (b"m", b"n", b"") for salt in salts}
    assert len(roots) == 9
    assert root_key(b"m", b"n" + a.salt) != root_key(b"mn", a.salt)


def test_whoever_is_not_named_is_as_default_says() -> None:
    settings = {"default": PrincipalSettings(weight=3), "a": PrincipalSettings(role=Role.OPERATOR)}
    directory = Directory(settings)
    assert (directory.named("a").weight, directory.named("a").is_operator) == (1, True)
    assert (directory.named("b").weight, directory.named("b").is_operator) == (3, False)


async def test_operators_see_the_tree_and_users_do_not(folder: Path) -> None:
    tokens = Tokens(folder)
    alice, root = shown(tokens.new("alice")), shown(tokens.new("root", Role.OPERATOR))
    request = cache_pb2.DescribeTreeRequest()
    async with running(settings={"tokens": str(tokens.path)}) as run:
        await found(run, alice)
        nodes = [node async for node in run.cache.DescribeTree(request, metadata=root)]
        assert nodes
        with pytest.raises(Exception, match="operators"):
            await collect(run.cache.DescribeTree(request, metadata=alice))


async def test_users_have_pins_of_their_own_and_see_no_others(folder: Path, tmp_path: Path) -> None:
    tokens = Tokens(folder)
    alice, bob = shown(tokens.new("alice")), shown(tokens.new("bob"))
    root = shown(tokens.new("root", Role.OPERATOR))
    file = tmp_path / "c.toml"
    file.write_text("[principals.bob]\npin_bytes_max = 1\n")
    settings = {"tokens": str(tokens.path), "config": str(file)}
    async with running(settings=settings) as run:
        asked = cache_pb2.PinPrefixRequest(text="system")
        pin = (await run.cache.PinPrefix(asked, metadata=alice)).pin
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await run.cache.PinPrefix(asked, metadata=bob)
        assert reason_of(caught.value) == ("RESOURCE_EXHAUSTED", "CLIENT_QUOTA")
        listed = [
            [each.id for each in (await run.cache.ListPins(LIST, metadata=metadata)).pins]
            for metadata in (alice, bob, root)
        ]
        assert listed == [[pin.id], [], [pin.id]]
        unpinned = cache_pb2.UnpinPrefixRequest(pin_id=pin.id)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await run.cache.UnpinPrefix(unpinned, metadata=bob)
        assert reason_of(caught.value) == ("NOT_FOUND", "PIN_NOT_FOUND")
        await run.cache.UnpinPrefix(unpinned, metadata=alice)
        assert not (await run.cache.ListPins(LIST, metadata=root)).pins

"""Who may call what: every method of every service, with every kind of caller."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor

from sapwood.daemon.rpc.reflection import NEW_REFLECTION, OLD_REFLECTION
from sapwood.daemon.rpc.services import CACHE, GENERATION, HEALTH, SESSION
from sapwood.daemon.settings.principals import Role
from sapwood.v1 import cache_pb2
from tests.daemon.conftest import Running, collect, prompt_of, reason_of, running
from tests.daemon.tenants import Shown, Tokens, shown

pytestmark = pytest.mark.anyio

METHODS = [
    method
    for service in (GENERATION, CACHE, SESSION, HEALTH, NEW_REFLECTION, OLD_REFLECTION)
    for method in service.methods
]
KNOWN = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}


@pytest.fixture
def tokens(folder: Path) -> Tokens:
    return Tokens(folder)


def with_tokens(tokens: Tokens, **settings: Any) -> dict[str, Any]:
    return {"tokens": str(tokens.path), **settings}


def path_of(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


async def status_of(
    channel: grpc.aio.Channel, method: MethodDescriptor, metadata: Shown = ()
) -> grpc.StatusCode:
    """How a call with an empty message ends; OK where it is answered."""
    path = path_of(method)
    call: Any
    try:
        if method.client_streaming:
            call = channel.stream_stream(path)(metadata=metadata)
            await call.write(b"")
            await call.read()
            call.cancel()
        elif method.server_streaming:
            streams: Any = channel.unary_stream(path)
            call = streams(b"", metadata=metadata, timeout=10)
            await call.read()
            call.cancel()
        else:
            answers: Any = channel.unary_unary(path)
            await answers(b"", metadata=metadata, timeout=10)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_r8_health_alone_is_open_and_the_rest_is_users_or_operators(
    tokens: Tokens,
) -> None:
    user, operator = tokens.new("alice"), tokens.new("root", Role.OPERATOR)
    async with running(settings=with_tokens(tokens)) as run:
        for method in METHODS:
            told = [
                await status_of(run.channel, method, metadata)
                for metadata in ((), shown("sapwood_nobody"), shown(user), shown(operator))
            ]
            nobody, stranger, alice, root = (code if code in KNOWN else None for code in told)
            service = method.containing_service.full_name
            unknown, denied = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED
            wanted: list[grpc.StatusCode | None] = [unknown, unknown, None, None]
            if service == "grpc.health.v1.Health":
                wanted = [None] * 4
            elif service == "sapwood.v1.CacheService" and "pin" not in method.name.lower():
                wanted[2] = denied
            assert [nobody, stranger, alice, root] == wanted, path_of(method)


async def test_without_tokens_loopback_and_the_socket_are_an_operators(folder: Path) -> None:
    settings = {"listen": ["127.0.0.1:0", f"unix:{folder}/s", f"unix:{folder}/t,principal=bob"]}
    async with running(settings=settings) as run:
        assert [str(address) for address in run.daemon.grpc_addresses][1:] == [
            f"unix:{folder}/s",
            f"unix:{folder}/t",
        ]
        codes = []
        for address in run.daemon.grpc_addresses:
            async with grpc.aio.insecure_channel(address.target) as channel:
                stats = CACHE.methods_by_name["GetCacheStats"]
                # A token that nobody can look up means nothing.
                codes.append(await status_of(channel, stats, shown("sapwood_nobody")))
    assert codes == [
        grpc.StatusCode.OK,
        grpc.StatusCode.OK,
        grpc.StatusCode.PERMISSION_DENIED,
    ]


async def test_a_token_that_is_shown_counts_on_sockets_too(tokens: Tokens, folder: Path) -> None:
    user, operator = tokens.new("alice"), tokens.new("root", Role.OPERATOR)
    listen = [f"unix:{folder}/s", f"unix:{folder}/t,principal=bob"]
    stats = CACHE.methods_by_name["GetCacheStats"]
    async with running(settings=with_tokens(tokens, listen=listen)) as run:
        told = []
        for address in run.daemon.grpc_addresses:
            async with grpc.aio.insecure_channel(address.target) as channel:
                for metadata in ((), shown(user), shown(operator), shown("sapwood_nobody")):
                    told.append(await status_of(channel, stats, metadata))
    codes = grpc.StatusCode
    first = [codes.OK, codes.PERMISSION_DENIED, codes.OK, codes.UNAUTHENTICATED]
    assert told == [*first, codes.PERMISSION_DENIED, *first[1:]]


async def test_the_configuration_makes_operators_of_sockets_and_users_of_local(
    tmp_path: Path, folder: Path
) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[principals.bob]\nrole = "operator"\n[principals.local]\nrole = "user"\n')
    listen = ["127.0.0.1:0", f"unix:{folder}/s", f"unix:{folder}/t,principal=bob"]
    stats = CACHE.methods_by_name["GetCacheStats"]
    async with running(settings={"listen": listen, "config": str(file)}) as run:
        told = []
        for address in run.daemon.grpc_addresses:
            async with grpc.aio.insecure_channel(address.target) as channel:
                told.append(await status_of(channel, stats))
    denied = grpc.StatusCode.PERMISSION_DENIED
    assert told == [denied, denied, grpc.StatusCode.OK]


async def refusal(run: Running, metadata: Shown) -> grpc.aio.AioRpcError:
    call = run.generation.Generate(prompt_of(5, 6, max_tokens=2), metadata=metadata)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(call)
    return caught.value


async def test_r7_what_is_no_token_is_unauthenticated_and_said_nowhere(
    tokens: Tokens, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    alice, bob = tokens.new("alice"), tokens.new("bob")
    wrong: dict[str, Shown] = {
        "another secret": shown(alice[:-1] + ("A" if alice[-1] != "A" else "B")),
        "another's secret": shown(alice[:25] + bob[25:]),
        "another's id": shown(bob[:25] + alice[25:]),
        "cut": shown(alice[:-1]),
        "longer": shown(alice + "A"),
        "no scheme": (("authorization", alice),),
        "another scheme": shown(alice, "Basic"),
        "twice": (*shown(alice), *shown(bob)),
        "empty": (("authorization", ""),),
        "no token": (("authorization", "Bearer "),),
        "long": shown(alice + "x" * 4000),
        "in another key": (("x-api-key", alice),),
    }
    async with running(settings=with_tokens(tokens)) as run:
        for name, metadata in wrong.items():
            error = await refusal(run, metadata)
            assert reason_of(error) == ("UNAUTHENTICATED", ""), name
            for secret in (alice[25:], bob[25:]):
                assert secret[:20] not in str(error) + repr(error), name
        for right in (shown(alice), shown(alice, "bearer"), shown(alice, "BEARER")):
            assert len((await collect(run.generation.Generate(prompt_of(5), metadata=right)))[0])
        assert run.daemon._gate.rejected.total() == 0
    assert not any(secret[25:45] in caplog.text for secret in (alice, bob))


async def test_who_is_refused_is_told_what_is_needed(tokens: Tokens) -> None:
    async with running(settings=with_tokens(tokens)) as run:
        error = await refusal(run, ())
        assert error.details() == "a token is needed: authorization: Bearer TOKEN"
        user = tokens.new("alice")
        run.daemon._credentials.follow()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await run.cache.GetCacheStats(cache_pb2.GetCacheStatsRequest(), metadata=shown(user))
        assert reason_of(caught.value) == ("PERMISSION_DENIED", "")
        assert caught.value.details() == "this is for operators"


def raw(run: Running, method: str) -> Any:
    return run.channel.unary_unary(f"/sapwood.v1.GenerationService/{method}")


async def test_an_unknown_method_says_nothing_to_anybody(tokens: Tokens) -> None:
    async with running(settings=with_tokens(tokens)) as run:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await raw(run, "Nope")(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_r8_a_strangers_bytes_are_not_parsed(tokens: Tokens) -> None:
    """Else they would be BAD_REQUEST."""
    async with running(settings=with_tokens(tokens)) as run:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await raw(run, "Tokenize")(b"\xff\xff\xff")
        assert reason_of(caught.value) == ("UNAUTHENTICATED", "")


async def test_r8_what_is_for_operators_is_not_parsed_for_users(tokens: Tokens) -> None:
    user, operator = tokens.new("alice"), tokens.new("root", Role.OPERATOR)
    async with running(settings=with_tokens(tokens)) as run:
        told = []
        for token in (user, operator):
            call: Any = run.channel.unary_unary("/sapwood.v1.CacheService/GetCacheStats")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(b"\xff\xff\xff", metadata=shown(token))
            told.append(caught.value.code())
    assert told == [grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT]

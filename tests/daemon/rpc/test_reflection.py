"""Server reflection lists and describes every service, and is off where it is switched off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2

from sapwood.daemon.rpc.reflection import NEW_REFLECTION
from tests.daemon.conftest import Running, collect, reason_of, running

pytestmark = pytest.mark.anyio

VERSIONS = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
OURS = (
    "sapwood.v1.GenerationService",
    "sapwood.v1.CacheService",
    "sapwood.v1.SessionService",
    "grpc.health.v1.Health",
)
NOT_FOUND = grpc.StatusCode.NOT_FOUND.value[0]


async def asked(run: Running, version: str, **question: Any) -> Any:
    """One answer, read with the messages of its version."""
    old = reflection_pb2.ServerReflectionRequest(**question)
    method = NEW_REFLECTION.methods_by_name["ServerReflectionInfo"]
    new = "v1alpha" not in version
    answer = GetMessageClass(method.output_type) if new else reflection_pb2.ServerReflectionResponse
    ask: Any = run.channel.stream_stream(f"/{version}/ServerReflectionInfo")
    call = ask()
    await call.write(old.SerializeToString())
    response = answer.FromString(await call.read())
    await call.done_writing()
    return response


async def described(run: Running, version: str, symbol: str) -> list[str]:
    """The files that describe a symbol; all that they need is among them."""
    response = await asked(run, version, file_containing_symbol=symbol)
    assert response.original_request.file_containing_symbol == symbol
    files = response.file_descriptor_response.file_descriptor_proto
    parsed = [descriptor_pb2.FileDescriptorProto.FromString(file) for file in files]
    _rebuilt(parsed)
    return [file.name for file in parsed]


def _rebuilt(files: Sequence[descriptor_pb2.FileDescriptorProto]) -> DescriptorPool:
    pool, left = DescriptorPool(), {file.name: file for file in files}

    def add(name: str) -> None:
        if (file := left.pop(name, None)) is not None:
            for needed in file.dependency:
                add(needed)
            pool.AddSerializedFile(file.SerializeToString())

    for file in files:
        add(file.name)
    return pool


@pytest.mark.parametrize("version", VERSIONS)
async def test_reflection_lists_every_service(version: str) -> None:
    async with running() as run:
        response = await asked(run, version, list_services="")
    listed = [service.name for service in response.list_services_response.service]
    assert listed == sorted([*OURS, *VERSIONS])


@pytest.mark.parametrize("version", VERSIONS)
async def test_reflection_finds_services_methods_and_messages(version: str) -> None:
    async with running() as run:
        for symbol in (
            "sapwood.v1.GenerationService",
            "sapwood.v1.GenerationService.Generate",
            "sapwood.v1.GenerateRequest",
            "sapwood.v1.GenerateRequest.text",
        ):
            files = await described(run, version, symbol)
            assert files[0] == "sapwood/v1/generation.proto", symbol
        for name in VERSIONS:
            await described(run, version, f"{name}.ServerReflectionInfo")
        for unknown in ("sapwood.v1.GenerationService.Nope", "sapwood.v1.Nope.Generate", "x", ""):
            response = await asked(run, version, file_containing_symbol=unknown)
            assert response.error_response.error_code == NOT_FOUND, unknown


@pytest.mark.parametrize("version", VERSIONS)
async def test_reflection_can_be_switched_off(version: str) -> None:
    async with running(settings={"reflection": False}) as run:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asked(run, version, list_services="")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("version", VERSIONS)
async def test_r4_malformed_bytes_on_the_stream_are_bad_request(version: str) -> None:
    async with running() as run:
        reflect: grpc.aio.StreamStreamMultiCallable[bytes, bytes]
        reflect = run.channel.stream_stream(f"/{version}/ServerReflectionInfo")
        call = reflect()
        await call.write(b"\xff\xff\xff")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collect(call)
        assert reason_of(caught.value) == ("INVALID_ARGUMENT", "BAD_REQUEST")

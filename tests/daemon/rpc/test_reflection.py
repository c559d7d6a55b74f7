"""Server reflection lists every service, and is off where it is switched off."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.daemon.conftest import Running, running

pytestmark = pytest.mark.anyio


async def listed(run: Running) -> set[str]:
    make: Any = reflection_pb2_grpc.ServerReflectionStub  # its types know no aio
    call = make(run.channel).ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    response = await call.read()
    await call.done_writing()
    return {service.name for service in response.list_services_response.service}


async def test_reflection_lists_every_service() -> None:
    async with running() as run:
        assert await listed(run) == {
            "sapwood.v1.GenerationService",
            "sapwood.v1.CacheService",
            "sapwood.v1.SessionService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }


async def test_reflection_can_be_switched_off() -> None:
    async with running(settings={"reflection": False}) as run:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await listed(run)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

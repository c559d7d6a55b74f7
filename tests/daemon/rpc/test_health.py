"""grpc.health.v1 says SERVING of what serves, and nothing of what is not built."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2

from sapwood.daemon.rpc.services import CACHE, GENERATION, HEALTH, SESSION
from tests.daemon.conftest import Running, collect, running

pytestmark = pytest.mark.anyio

UNIMPLEMENTED, NOT_FOUND = grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND
STATUS = health_pb2.HealthCheckResponse
PATH = f"/{HEALTH.full_name}"


async def checked(run: Running, service: str) -> int | grpc.StatusCode:
    """What Check says of a service, or the status that it ends with."""
    check: Any = run.channel.unary_unary(f"{PATH}/Check")
    try:
        request = health_pb2.HealthCheckRequest(service=service)
        return STATUS.FromString(await check(request.SerializeToString())).status
    except grpc.aio.AioRpcError as error:
        return error.code()


async def listed(run: Running) -> dict[str, int]:
    method = HEALTH.methods_by_name["List"]
    answer: Any = GetMessageClass(method.output_type)
    ask: Any = run.channel.unary_unary(f"{PATH}/List")
    return {name: s.status for name, s in answer.FromString(await ask(b"")).statuses.items()}


async def built(run: Running, service: ServiceDescriptor) -> bool:
    """Whether a method of it answers something else than UNIMPLEMENTED."""
    channel: Any = run.channel
    for method in service.methods:
        kind = channel.unary_stream if method.server_streaming else channel.unary_unary
        call = kind(f"/{service.full_name}/{method.name}")(b"")
        try:
            await (collect(call) if method.server_streaming else call)
        except grpc.aio.AioRpcError as error:
            if error.code() is UNIMPLEMENTED:
                continue
        return True
    return False


async def test_a_service_has_a_health_if_it_is_built() -> None:
    async with running() as run:
        serving = {""}
        for service in (GENERATION, CACHE, SESSION, HEALTH):
            name = service.full_name
            if await built(run, service):
                serving.add(name)
                assert await checked(run, name) == STATUS.SERVING, name
            else:
                assert await checked(run, name) is NOT_FOUND, name
        names = [service.full_name for service in (GENERATION, CACHE, SESSION, HEALTH)]
        assert serving == {"", *names}
        assert await listed(run) == dict.fromkeys(serving, STATUS.SERVING)


async def test_a_watch_of_what_is_in_no_contract_says_that_it_is_unknown() -> None:
    async with running() as run:
        watch: Any = run.channel.unary_stream(f"{PATH}/Watch")
        request = health_pb2.HealthCheckRequest(service="sapwood.v1.Nothing")
        call = watch(request.SerializeToString())
        assert STATUS.FromString(await call.read()).status == STATUS.SERVICE_UNKNOWN
        call.cancel()


async def test_the_list_changes_with_the_daemon() -> None:
    async with running() as run:
        run.daemon.drain()
        assert set((await listed(run)).values()) == {STATUS.NOT_SERVING}

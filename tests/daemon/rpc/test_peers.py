"""Whose a request is, as long as nobody says it, and that the core is told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from sapwood.daemon.rpc.peers import principal_of
from sapwood.scheduler.events import Request, Submit
from sapwood.v1 import generation_pb2 as pb
from sapwood.v1 import generation_pb2_grpc
from tests.daemon.conftest import collect, prompt_of, running


@pytest.mark.parametrize(
    ("peer", "principal"),
    [
        ("ipv4:127.0.0.1:50551", "ipv4:127.0.0.1"),
        ("ipv4:127.0.0.1:50552", "ipv4:127.0.0.1"),
        ("ipv4:127.0.0.2:50552", "ipv4:127.0.0.2"),
        ("ipv6:%5B::1%5D:42000", "ipv6:%5B::1%5D"),
        ("unix:", "unix"),
        ("unix:/run/sapwood.sock", "unix"),
        ("", "unknown"),
        ("something", "unknown"),
    ],
)
def test_l4_ports_and_paths_are_nobody(peer: str, principal: str) -> None:
    assert principal_of(peer) == principal


@pytest.mark.anyio
async def test_l4_the_core_is_told_whose_a_request_is_and_how_urgent(folder: Path) -> None:
    """One client over TCP on two connections, one over a unix socket: two principals."""
    socket = f"unix:{folder}/s.sock"
    settings = {"listen": ["127.0.0.1:0", socket]}
    seen: list[Request] = []
    async with running(settings=settings) as run:
        engine = run.daemon._engine
        send = engine.send

        def watched(command: object) -> None:
            if isinstance(command, Submit):
                seen.append(command.request)
            send(command)  # type: ignore[arg-type]

        engine.send = watched  # type: ignore[method-assign]
        for address in (run.address, run.address, socket):
            options = [("grpc.use_local_subchannel_pool", 1)]
            async with grpc.aio.insecure_channel(address, options=options) as channel:
                stub = generation_pb2_grpc.GenerationServiceStub(channel)
                request = prompt_of(5, max_tokens=1, priority=pb.PRIORITY_BATCH)
                await asyncio.wait_for(collect(stub.Generate(request)), 10)
    assert [request.principal for request in seen] == ["ipv4:127.0.0.1", "ipv4:127.0.0.1", "unix"]
    assert {request.priority.name for request in seen} == {"BATCH"}

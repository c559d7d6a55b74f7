"""A daemon that a gateway can connect to, and the worker's protocol as one would speak it.

Where the protocol's package is missing these tests are left out, and say what installs it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import grpc
import pytest

from sapwood.scheduler.limits import Limits
from tests.daemon.conftest import Running, running
from tests.daemon.fakes import FakeDevice

MISSING = 'the gateway\'s protocol is not installed: pip install "smg-grpc-proto==0.4.28"'
HAS_PROTOCOL = importlib.util.find_spec("smg_grpc_proto") is not None
needs_protocol = pytest.mark.skipif(not HAS_PROTOCOL, reason=MISSING)


class Worker(NamedTuple):
    """A daemon, and its worker's protocol on a channel of its own."""

    run: Running
    stub: Any
    pb: Any

    def request(self, *ids: int, stream: bool = True, id: str = "r", **params: Any) -> Any:
        return self.pb.GenerateRequest(
            request_id=id,
            tokenized=self.pb.TokenizedInput(input_ids=ids),
            sampling_params=self.pb.SamplingParams(**params),
            stream=stream,
        )

    async def ask(self, *ids: int, **fields: Any) -> list[Any]:
        """Every response to a request."""
        return [one async for one in self.stub.Generate(self.request(*ids, **fields))]


@asynccontextmanager
async def working(
    device: FakeDevice | None = None,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    principals: dict[str, Any] | None = None,
    **loaded: Any,
) -> AsyncIterator[Worker]:
    """`running`, with the worker's protocol served on loopback."""
    from smg_grpc_proto import vllm_engine_pb2, vllm_engine_pb2_grpc

    settings = {"gateway": "127.0.0.1:0", "principals": principals}
    async with (
        running(device, limits, settings=settings, **loaded) as run,
        grpc.aio.insecure_channel(str(run.daemon.gateway_address)) as channel,
    ):
        yield Worker(run, vllm_engine_pb2_grpc.VllmEngineStub(channel), vllm_engine_pb2)


def chunked_ids(responses: list[Any]) -> list[int]:
    return [id for one in responses for id in one.chunk.token_ids]


def events_in(batches: list[Any]) -> Iterator[Any]:
    return (event for batch in batches for event in batch.events)

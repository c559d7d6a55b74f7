"""Statuses, details and retries: what a client raises, and when it tries again."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Never

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

import sapwood
from sapwood.client import channel
from sapwood.client.errors import Details
from tests.sapwood.client.conftest import Connect
from tests.sapwood.client.fake import (
    FakeDaemon,
    Request,
    done,
    endless_reply,
    refuse,
)

pytestmark = pytest.mark.anyio


def _pickled(protocol: int, error: sapwood.SapwoodError) -> Any:
    return pickle.loads(pickle.dumps(error, protocol))


async def test_deadline(connect: Connect, daemon: FakeDaemon, address: str) -> None:
    daemon.reply = endless_reply
    async with connect(address) as client:
        stream = client.generate("hello", timeout=0.2)
        with pytest.raises(sapwood.DeadlineExceeded) as caught:
            await done(stream.collect())
    assert caught.value.status is grpc.StatusCode.DEADLINE_EXCEEDED
    assert caught.value.reason == ""


CLASSES = {
    "INVALID_ARGUMENT": sapwood.InvalidArgument,
    "NOT_FOUND": sapwood.NotFound,
    "FAILED_PRECONDITION": sapwood.FailedPrecondition,
    "RESOURCE_EXHAUSTED": sapwood.ResourceExhausted,
    "UNAUTHENTICATED": sapwood.Unauthenticated,
    "PERMISSION_DENIED": sapwood.PermissionDenied,
    "UNAVAILABLE": sapwood.Unavailable,
    "DEADLINE_EXCEEDED": sapwood.DeadlineExceeded,
    "CANCELLED": sapwood.Cancelled,
    "UNIMPLEMENTED": sapwood.Unimplemented,
    "INTERNAL": sapwood.SapwoodError,
}


WAYS_TO_COPY: dict[str, Callable[[sapwood.SapwoodError], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle {protocol}": partial(_pickled, protocol) for protocol in range(6)},
}


@pytest.mark.parametrize("way", WAYS_TO_COPY)
@pytest.mark.parametrize("status", CLASSES)
def test_errors_are_copied_with_all_they_say(status: str, way: str) -> None:
    details = Details("SOME_REASON", {"sampling.top_p": "not in (0, 1]"}, 1.5)
    error = CLASSES[status](grpc.StatusCode[status], "no", details)
    error.add_note("of this call")
    twin = WAYS_TO_COPY[way](error)
    assert twin is not error and type(twin) is type(error)
    assert vars(twin) == vars(error) and twin.fields == {"sampling.top_p": "not in (0, 1]"}
    assert (twin.status, twin.reason, twin.retry_after_s) == (error.status, "SOME_REASON", 1.5)
    assert str(twin) == str(error) == "SOME_REASON: no"
    with pytest.raises(CLASSES[status]) as caught:
        raise twin
    assert caught.value is twin


async def test_an_error_of_a_call_crosses_processes(
    connect: Connect, daemon: FakeDaemon, address: str
) -> None:
    daemon.reply = lambda request, context: refuse(context, grpc.StatusCode.NOT_FOUND, "no")
    async with connect(address) as client:
        with pytest.raises(sapwood.NotFound) as caught:
            await done(client.generate("hello").collect())
    twin = pickle.loads(pickle.dumps(caught.value))
    assert (type(twin), str(twin)) == (sapwood.NotFound, "NOT_FOUND: no")


@pytest.mark.parametrize("status", CLASSES)
async def test_each_status_has_its_class(
    connect: Connect, daemon: FakeDaemon, address: str, status: str
) -> None:
    daemon.reply = lambda request, context: refuse(context, grpc.StatusCode[status], "no")
    async with connect(address) as client:
        with pytest.raises(sapwood.SapwoodError) as caught:
            await done(client.generate("hello").collect())
    assert type(caught.value) is CLASSES[status]
    assert caught.value.message == "no"


async def test_details_are_decoded(connect: Connect, daemon: FakeDaemon, address: str) -> None:
    violation = error_details_pb2.BadRequest.FieldViolation(
        field="sampling.top_p", description="not in (0, 1]"
    )
    daemon.reply = lambda request, context: refuse(
        context,
        grpc.StatusCode.INVALID_ARGUMENT,
        "bad sampling",
        error_details_pb2.ErrorInfo(domain="sapwood", reason="BAD_SAMPLING"),
        error_details_pb2.BadRequest(field_violations=[violation]),
        error_details_pb2.RetryInfo(retry_delay=Duration(seconds=1, nanos=500_000_000)),
    )
    async with connect(address) as client:
        with pytest.raises(sapwood.InvalidArgument, match="BAD_SAMPLING: bad sampling") as caught:
            # Asked for again in 1.5 s, were there so much time.
            await done(client.generate("hello", timeout=1.0).collect())
    assert caught.value.reason == "BAD_SAMPLING"
    assert caught.value.fields == {"sampling.top_p": "not in (0, 1]"}
    assert caught.value.retry_after_s == 1.5


async def test_foreign_and_broken_details_count_as_none(
    connect: Connect, daemon: FakeDaemon, address: str
) -> None:
    def foreign(request: Request, context: grpc.ServicerContext) -> Never:
        info = error_details_pb2.ErrorInfo(domain="proxy.example", reason="QUEUE_FULL")
        refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", info)

    def broken(request: Request, context: grpc.ServicerContext) -> Never:
        context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff"),))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")

    async with connect(address) as client:
        for daemon.reply in foreign, broken:
            with pytest.raises(sapwood.ResourceExhausted, match="busy") as caught:
                await done(client.generate("hello").collect())
            assert (caught.value.reason, caught.value.retry_after_s) == ("", None)


async def test_no_daemon_is_unavailable_not_a_hang(connect: Connect, tmp_path: Path) -> None:
    async with connect(f"unix:{tmp_path}/nobody.sock") as client:
        with pytest.raises(sapwood.Unavailable):
            await done(client.generate("hello").collect())
        with pytest.raises(sapwood.Unavailable):
            await done(client.is_serving())


def test_a_daemon_that_is_back_is_looked_for_soon() -> None:
    """gRPC's own patience grows to two minutes, in which every call fails with the last error."""
    told = dict(channel.options(0))
    assert int(told["grpc.initial_reconnect_backoff_ms"]) <= 100
    assert int(told["grpc.max_reconnect_backoff_ms"]) <= 1000

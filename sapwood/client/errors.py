"""Errors of an RPC as exceptions, one class per gRPC status.

    SapwoodError
    ├── InvalidArgument      ├── PermissionDenied
    ├── NotFound             ├── Unavailable
    ├── FailedPrecondition   ├── DeadlineExceeded
    ├── ResourceExhausted    ├── Cancelled
    └── Unauthenticated      └── Unimplemented

- A status without a class is a plain SapwoodError, as UNKNOWN and INTERNAL are: a fault of the
  daemon, or, where none of its details came with it, what was made of a stream that something on
  the way cut, such as a proxy. The message says so then.
- What a peer puts into the details is not trusted: details that do not parse count as none.
- Errors can be pickled and copied with all they say: `args` is what makes the error again.
- A client that was closed raises Cancelled for whatever is called on it then, as what was under way
  does: the one is the other, seen later. Closing it once more, or a stream of it, does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "sapwood"

Calling = Callable[[], AbstractContextManager[None]]  # around calls of one client


@dataclass(frozen=True, slots=True)
class Details:
    """What google.rpc.Status says beyond status and message.

    reason: upper-case name in the error table of proto/sapwood/v1/generation.proto; empty where
    the status comes from gRPC itself. fields: what is wrong, by the path of the request's field.
    retry_after_s: None where a retry makes no sense. cut: the daemon said nothing, the
    connection was lost or the stream cut on its way.
    """

    reason: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    retry_after_s: float | None = None
    cut: bool = False


class SapwoodError(Exception):
    """An RPC failed with `status`; the rest is as in Details."""

    def __init__(
        self, status: grpc.StatusCode, message: str, details: Details | None = None
    ) -> None:
        details = details or Details()
        super().__init__(status, message, details)
        self.status = status
        self.message = message
        self.reason = details.reason
        self.fields = details.fields
        self.retry_after_s = details.retry_after_s
        self.cut = details.cut

    def __str__(self) -> str:
        return f"{self.reason or self.status.name}: {self.message}"


class InvalidArgument(SapwoodError):
    """The request is wrong, whatever the daemon's state."""


class NotFound(SapwoodError):
    """A session, model or pin does not exist."""


class FailedPrecondition(SapwoodError):
    """The loaded model or the session's state does not allow it."""


class ResourceExhausted(SapwoodError):
    """A queue, quota or memory is full, or the stream was read too slowly."""


class Unauthenticated(SapwoodError):
    """The daemon does not know who asks."""


class PermissionDenied(SapwoodError):
    """Who asks may not."""


class Unavailable(SapwoodError):
    """No daemon answers, or it is loading, draining or broken."""


class DeadlineExceeded(SapwoodError):
    """The timeout passed first."""


class Cancelled(SapwoodError):
    """The call was cancelled, usually by this client, or that is closed. No reply is complete."""


class Unimplemented(SapwoodError):
    """The daemon does not have this method."""


_CLASSES = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
}
_FAULTS = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)
_CUTS = (grpc.StatusCode.UNAVAILABLE, *_FAULTS)


@contextmanager
def translated() -> Iterator[None]:
    """Turns what gRPC raises inside into a SapwoodError, for sync and async calls alike."""
    try:
        yield
    except grpc.RpcError as error:
        status = error.code()
        raise _CLASSES.get(status, SapwoodError)(
            status, _message(error, status), _details(error)
        ) from None


def client_closed() -> Cancelled:
    """What a call on a closed client raises, where gRPC has errors of Python's or its own."""
    return Cancelled(grpc.StatusCode.CANCELLED, "the client is closed")


def _message(error: grpc.RpcError, status: grpc.StatusCode) -> str:
    told: str = error.details() or ""
    if status in _FAULTS and _status(error) is None:
        return f"not the daemon's own status, so the stream was cut on its way: {told}"
    return told


def _details(error: grpc.RpcError) -> Details:
    status = _status(error)
    return Details(cut=error.code() in _CUTS) if status is None else _read(status)


def _status(error: grpc.RpcError) -> status_pb2.Status | None:
    """What the daemon puts behind every status of its own, faults included."""
    try:
        # The errors of both APIs have the three methods of a Call that this reads.
        found: status_pb2.Status | None = rpc_status.from_call(cast("grpc.Call", error))
        return found
    except (ValueError, DecodeError):
        return None


def _read(status: status_pb2.Status) -> Details:
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    retry_after_s = None
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad_request)
        if detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
    return Details(
        reason=info.reason if info.domain == DOMAIN else "",
        fields={v.field: v.description for v in bad_request.field_violations},
        retry_after_s=retry_after_s,
    )

"""Why a request is refused, and the one place that turns a refusal into a gRPC status.

- A status' text is ours, never an exception's.
- Details: ErrorInfo with our reason, BadRequest naming the field, RetryInfo where a retry may help.
"""

from __future__ import annotations

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from sapwood.scheduler.errors import (
    Exhausted,
    InvalidRequest,
    Missing,
    NotServing,
    Precondition,
    Refused,
)
from sapwood.scheduler.events import Failed
from sapwood.scheduler.limits import Limits

ERROR_DOMAIN = "sapwood"
RETRY_AFTER_S = 1.0


class DeadlinePassed(Refused):
    """The client's deadline passed; a status without a reason of ours."""

    status = "DEADLINE_EXCEEDED"


class RequestCancelled(Refused):
    """The client cancelled; a status without a reason of ours."""

    status = "CANCELLED"


class NotBuilt(Refused):
    """In the contract, not built yet; a status without a reason of ours."""

    status = "UNIMPLEMENTED"


class Internal(Refused):
    """A bug of ours, reported without its text."""

    status = "INTERNAL"


_CLASSES: dict[str, type[Refused]] = {
    **dict.fromkeys(
        (
            "BAD_REQUEST",
            "BAD_SAMPLING",
            "BAD_CONSTRAINT",
            "BAD_TOKEN_ID",
            "EMPTY_PROMPT",
            "CONTEXT_TOO_LONG",
        ),
        InvalidRequest,
    ),
    **dict.fromkeys(("SESSION_NOT_FOUND", "MODEL_NOT_FOUND", "PIN_NOT_FOUND"), Missing),
    **dict.fromkeys(("SESSION_BUSY", "NO_DRAFTER", "UNSUPPORTED"), Precondition),
    **dict.fromkeys(("QUEUE_FULL", "CLIENT_QUOTA", "OUT_OF_MEMORY", "SLOW_READER"), Exhausted),
    **dict.fromkeys(("MODEL_LOADING", "DRAINING", "ENGINE_FAILED"), NotServing),
    "DEADLINE_EXCEEDED": DeadlinePassed,
    "CANCELLED": RequestCancelled,
}


def refusal_of(failed: Failed) -> Refused:
    """The exception that ends an RPC whose sequence failed with this effect."""
    if failed.reason == "DRAINING":
        return draining()  # the same for who waits, runs and comes: a retry finds the next daemon
    return _CLASSES[failed.reason](
        failed.reason, failed.message, retry_after_s=failed.retry_after_s
    )


def model_loading() -> Refused:
    return NotServing("MODEL_LOADING", "the model is loading", retry_after_s=RETRY_AFTER_S)


def draining() -> Refused:
    return NotServing("DRAINING", "the daemon is shutting down", retry_after_s=RETRY_AFTER_S)


def engine_failed() -> Refused:
    return NotServing("ENGINE_FAILED", "the engine failed", retry_after_s=RETRY_AFTER_S)


def slow_reader() -> Refused:
    return Exhausted("SLOW_READER", "the reply was not read in time")


def status_of(refusal: Refused, limits: Limits) -> grpc.Status:
    """A status with rich details, its message cut to `error_detail_chars_max` characters."""
    message = refusal.message[: limits.error_detail_chars_max]
    status = status_pb2.Status(code=code_pb2.Code.Value(refusal.status), message=message)
    if refusal.reason in _CLASSES and refusal.reason != refusal.status:
        status.details.append(
            _packed(error_details_pb2.ErrorInfo(domain=ERROR_DOMAIN, reason=refusal.reason))
        )
    if refusal.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=refusal.field, description=message
        )
        status.details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    if refusal.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(refusal.retry_after_s * 1000))
        status.details.append(_packed(retry))
    return rpc_status.to_status(status)


def _packed(detail: error_details_pb2.ErrorInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed

"""The refusals that the daemon itself makes, and the one place that turns any into a gRPC status.

- A status' text is ours, never an exception's.
- Details: ErrorInfo with our reason, BadRequest naming the field, RetryInfo where a retry may help.
"""

from __future__ import annotations

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from sapwood.client.errors import DOMAIN
from sapwood.scheduler.events import Failed
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.reasons import Reason, Refused

RETRY_AFTER_S = 1.0


def refusal_of(failed: Failed) -> Refused:
    """The exception that ends an RPC whose sequence failed with this effect."""
    if failed.reason is Reason.DRAINING:
        return draining()  # the same for who waits, runs and comes: a retry finds the next daemon
    return Refused(
        failed.reason, failed.message, field=failed.field, retry_after_s=failed.retry_after_s
    )


def model_loading() -> Refused:
    """Nothing enters yet: a retry finds it loaded, sooner or later."""
    return Refused(Reason.MODEL_LOADING, "the model is loading", retry_after_s=RETRY_AFTER_S)


def draining() -> Refused:
    """For who comes and who is cut off alike: a retry finds the next daemon."""
    return Refused(Reason.DRAINING, "the daemon is shutting down", retry_after_s=RETRY_AFTER_S)


def engine_failed() -> Refused:
    """The process is about to end: a retry finds the next daemon."""
    return Refused(Reason.ENGINE_FAILED, "the engine failed", retry_after_s=RETRY_AFTER_S)


def slow_reader() -> Refused:
    """Without a time to retry: it is the client that has to change."""
    return Refused(Reason.SLOW_READER, "the reply was not read in time")


def internal() -> Refused:
    """A bug of ours, told without its text: that may hold a prompt."""
    return Refused(Reason.INTERNAL, "a fault of the daemon")


def status_of(refusal: Refused, limits: Limits) -> grpc.Status:
    """A status with rich details, its message cut to `error_detail_chars_max` characters."""
    message, reason = refusal.message[: limits.error_detail_chars_max], refusal.reason
    status = status_pb2.Status(code=reason.status.value, message=message)
    if reason.travels:
        info = error_details_pb2.ErrorInfo(domain=DOMAIN, reason=reason.name)
        status.details.append(_packed(info))
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

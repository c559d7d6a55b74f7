"""The one small tree of errors that a client may see, each carrying its gRPC status by name.

- Raised for the client's mistakes and the daemon's limits only; our own mistakes are asserts.
- Messages never carry exception text, paths or another client's data, and stay short.
- daemon/rpc/reasons.py is the one place that turns one into a gRPC status.
"""

from __future__ import annotations

from typing import ClassVar


class Refused(Exception):
    """A request that is not served; `reason` is the upper-case name in the wire contract."""

    status: ClassVar[str]

    def __init__(
        self, reason: str, message: str, *, field: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s


class InvalidRequest(Refused):
    """BAD_REQUEST, BAD_SAMPLING, BAD_CONSTRAINT, BAD_TOKEN_ID, EMPTY_PROMPT, CONTEXT_TOO_LONG."""

    status = "INVALID_ARGUMENT"


class Missing(Refused):
    """SESSION_NOT_FOUND, MODEL_NOT_FOUND, PIN_NOT_FOUND."""

    status = "NOT_FOUND"


class Precondition(Refused):
    """SESSION_BUSY, NO_DRAFTER, UNSUPPORTED."""

    status = "FAILED_PRECONDITION"


class Exhausted(Refused):
    """QUEUE_FULL, CLIENT_QUOTA, OUT_OF_MEMORY, SLOW_READER."""

    status = "RESOURCE_EXHAUSTED"


class NotServing(Refused):
    """MODEL_LOADING, DRAINING, ENGINE_FAILED."""

    status = "UNAVAILABLE"

"""Why a request is refused or ends early: every reason of the wire contract with its gRPC status.

- This enum is the one table. The comment at the head of generation.proto and docs/errors.md are
  checked against it, and the daemon makes statuses from it: no reason is spelled anywhere else.
- A reason that bears its status' name is the status itself and travels without a reason of ours.
"""

from __future__ import annotations

from enum import Enum


class Status(Enum):
    """The gRPC statuses that a client may see, by their names and codes."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class Reason(Enum):
    """A name of the wire contract; `status` is what the RPC ends with."""

    status: Status

    def __new__(cls, status: Status) -> Reason:
        """Numbered in order, since members of equal values would be one member."""
        member = object.__new__(cls)
        member._value_ = len(cls.__members__)
        member.status = status
        return member

    BAD_REQUEST = Status.INVALID_ARGUMENT
    BAD_SAMPLING = Status.INVALID_ARGUMENT
    BAD_CONSTRAINT = Status.INVALID_ARGUMENT
    BAD_TOKEN_ID = Status.INVALID_ARGUMENT
    EMPTY_PROMPT = Status.INVALID_ARGUMENT
    CONTEXT_TOO_LONG = Status.INVALID_ARGUMENT
    SESSION_NOT_FOUND = Status.NOT_FOUND
    PIN_NOT_FOUND = Status.NOT_FOUND
    SESSION_EXISTS = Status.ALREADY_EXISTS
    SESSION_BUSY = Status.FAILED_PRECONDITION
    NO_DRAFTER = Status.FAILED_PRECONDITION
    UNSUPPORTED = Status.FAILED_PRECONDITION
    QUEUE_FULL = Status.RESOURCE_EXHAUSTED
    CLIENT_QUOTA = Status.RESOURCE_EXHAUSTED
    OUT_OF_MEMORY = Status.RESOURCE_EXHAUSTED
    SLOW_READER = Status.RESOURCE_EXHAUSTED
    MODEL_LOADING = Status.UNAVAILABLE
    DRAINING = Status.UNAVAILABLE
    ENGINE_FAILED = Status.UNAVAILABLE

    CANCELLED = Status.CANCELLED
    DEADLINE_EXCEEDED = Status.DEADLINE_EXCEEDED
    NOT_FOUND = Status.NOT_FOUND
    PERMISSION_DENIED = Status.PERMISSION_DENIED
    UNAUTHENTICATED = Status.UNAUTHENTICATED
    UNIMPLEMENTED = Status.UNIMPLEMENTED
    INTERNAL = Status.INTERNAL

    @property
    def travels(self) -> bool:
        """Whether the status carries the reason; else the status says all."""
        return self.name != self.status.name


class Refused(Exception):
    """Raised for a request that is not served: the client's mistake or a limit of the daemon's.

    The message is for the client: never an exception's text, a path or another client's data.
    `field` names what is wrong in the request; `retry_after_s` says when another try makes sense.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        field: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s

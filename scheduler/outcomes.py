"""How a request ends: one enum for each side that says so, and the metrics' label for all.

- A reply that is whole has a FinishReason, a request that its client gave up a CancelReason; what
  the daemon refused or failed has a Reason (reasons.py).
"""

from __future__ import annotations

from enum import Enum, StrEnum

from sapwood.scheduler.reasons import Reason


class Outcome(StrEnum):
    """The label of `requests_total`."""

    STOP = "stop"
    LENGTH = "length"
    STOP_SEQUENCE = "stop_sequence"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    REJECTED = "rejected"
    FAILED = "failed"


class FinishReason(StrEnum):
    """Why a reply is complete: an end of turn or stop id, `max_tokens`, or a stop string."""

    STOP = "stop"
    LENGTH = "length"
    STOP_SEQUENCE = "stop_sequence"

    @property
    def outcome(self) -> Outcome:
        """The label that the metrics count it under."""
        return Outcome(self)


class CancelReason(Enum):
    """Why the shell gives a request up: what it counts as, what its client is told."""

    CANCELLED = Outcome.CANCELLED, Reason.CANCELLED, "cancelled"
    DEADLINE = Outcome.DEADLINE, Reason.DEADLINE_EXCEEDED, "the deadline passed"
    SLOW_READER = Outcome.FAILED, Reason.SLOW_READER, "the client read too slowly"
    # The daemon's own fault in serving it; the RPC has its status already.
    FAULT = Outcome.FAILED, Reason.INTERNAL, "a fault of the daemon"

    def __init__(self, outcome: Outcome, reason: Reason, message: str) -> None:
        self.outcome = outcome
        self.reason = reason
        self.message = message

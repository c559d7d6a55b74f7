"""How a request ends, in the words of the metrics and of the wire's finish reasons."""

from __future__ import annotations

STOP, LENGTH, STOP_SEQUENCE = "stop", "length", "stop_sequence"
CANCELLED, DEADLINE, REJECTED, FAILED = "cancelled", "deadline", "rejected", "failed"
OUTCOMES = (STOP, LENGTH, STOP_SEQUENCE, CANCELLED, DEADLINE, REJECTED, FAILED)

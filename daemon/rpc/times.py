"""Times on the wire and in the engine's clock."""

from __future__ import annotations

import time

from google.protobuf import duration_pb2, timestamp_pb2


def seconds_of(duration: duration_pb2.Duration) -> float:
    """A duration as a number of seconds."""
    return duration.seconds + duration.nanos / 1e9


def timestamp_of(at: float) -> timestamp_pb2.Timestamp:
    """In milliseconds: so far from now by the engine's clock, and so by everybody's."""
    told = timestamp_pb2.Timestamp()
    told.FromMilliseconds(round(1000 * (time.time() + at - time.monotonic())))
    return told

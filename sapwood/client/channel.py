"""How clients keep a connection: keepalive, sizes.

- gRPC itself tries nothing again. With a retry policy its sync channel (1.85) hangs past every
  deadline when the daemon leaves between two attempts, and it does not know RetryInfo: that is
  done by sapwood.client.attempts.
- Nobody waits for a daemon that is not there: without one a call fails at once. So no waitForReady.
- Keepalive finds a dead peer during a long silent prefill. Both timeouts are needed: the first
  alone leaves gRPC's own ping timeout of a minute in charge.
"""

from __future__ import annotations

from collections.abc import Callable

from grpc_health.v1 import health_pb2

_OPTIONS: list[tuple[str, str | int]] = [
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A daemon that is back is found within a second, where gRPC would take up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # The ids of a long text do not fit into gRPC's 4 MiB.
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    # The daemon is on this machine or a neighbour's, never behind a web proxy.
    ("grpc.enable_http_proxy", 0),
]


def options(number: int) -> list[tuple[str, str | int]]:
    """Channels of one number share a connection, others do not."""
    return [*_OPTIONS, ("sapwood.lane", number)]


# A call that answers at once, if the daemon lives at all.
CALL_TIMEOUT_S = 10.0

# Spelt out because the types of grpcio-health-checking's stub know no methods.
HEALTH_CHECK: tuple[
    str,
    Callable[[health_pb2.HealthCheckRequest], bytes],
    Callable[[bytes], health_pb2.HealthCheckResponse],
] = (
    "/grpc.health.v1.Health/Check",
    health_pb2.HealthCheckRequest.SerializeToString,
    health_pb2.HealthCheckResponse.FromString,
)

"""How clients keep a connection: retries, keepalive, sizes.

- Only what failed with UNAVAILABLE before its first message is retried, by gRPC itself. A stream
  that broke later is the caller's to resume: what was generated would be generated twice.
- Only the async client retries. With a retry policy, gRPC's sync channel (1.85) hangs past every
  deadline when the daemon leaves between two attempts; a client that hangs is worse than one that
  says Unavailable.
- Nobody waits for a daemon that is not there: without one a call fails after the retries, in about
  a second. So no waitForReady.
- Keepalive finds a dead peer during a long silent prefill. Both timeouts are needed: the first
  alone leaves gRPC's own ping timeout of a minute in charge.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from grpc_health.v1 import health_pb2

_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [
                {"service": "sapwood.v1.GenerationService"},
                {"service": "sapwood.v1.CacheService"},
            ],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}

OPTIONS: list[tuple[str, str | int]] = [
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # The ids of a long text do not fit into gRPC's 4 MiB.
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    # The daemon is on this machine or a neighbour's, never behind a web proxy.
    ("grpc.enable_http_proxy", 0),
]

RETRYING_OPTIONS = [("grpc.service_config", json.dumps(_SERVICE_CONFIG)), *OPTIONS]

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

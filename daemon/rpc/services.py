"""The gRPC servers, one for each address, and the options that they run under.

- All have every service, behind a guard that knows who comes by its address.
- A method without a behaviour is in the contract and not built yet: it answers UNIMPLEMENTED.
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2

from sapwood.daemon.descriptors import descriptors_beyond
from sapwood.daemon.rpc import boundary
from sapwood.daemon.rpc.boundary import Behaviour
from sapwood.daemon.rpc.cache_service import CacheService
from sapwood.daemon.rpc.entrance import Entrance
from sapwood.daemon.rpc.gate import Gate
from sapwood.daemon.rpc.generation_service import GenerationService
from sapwood.daemon.rpc.health_service import Health
from sapwood.daemon.rpc.reflection import reflection_handlers
from sapwood.daemon.rpc.session_service import SessionService
from sapwood.scheduler.limits import Limits
from sapwood.v1 import cache_pb2, generation_pb2, session_pb2

GENERATION = boundary.service(generation_pb2.DESCRIPTOR, "GenerationService")
CACHE = boundary.service(cache_pb2.DESCRIPTOR, "CacheService")
SESSION = boundary.service(session_pb2.DESCRIPTOR, "SessionService")
HEALTH = boundary.service(health_pb2.DESCRIPTOR, "Health")
BUILT = (GENERATION, SESSION, CACHE, HEALTH)


def built_services() -> list[str]:
    """Full names of what serves, reflection aside: what has a health."""
    return [service.full_name for service in BUILT]


def make_handlers(
    gate: Gate, health: Health, *, reflection: bool
) -> tuple[grpc.GenericRpcHandler, ...]:
    """Of all services, for any number of servers: their bounds are of all of these together."""
    limits = gate.limits
    ours = Entrance(limits, limits.rpcs_max, gate.count_refused)
    others = Entrance(limits, limits.watches_max)  # answered even where ours are at their bound
    services: tuple[tuple[ServiceDescriptor, dict[str, Behaviour], Entrance], ...] = (
        (GENERATION, GenerationService(gate).behaviours(), ours),
        (SESSION, SessionService(gate).behaviours(), ours),
        (CACHE, CacheService(gate).behaviours(), ours),
        (HEALTH, health.behaviours(), others),
    )
    gate.telemetry.expect(
        f"{service.full_name}/{method.name}"
        for service, *_ in services
        for method in service.methods
    )
    handlers = [boundary.service_handler(*service) for service in services]
    if reflection:
        names = [service.full_name for service, *_ in services]
        handlers += reflection_handlers(names, others)
    return tuple(handlers)


def make_server(
    handlers: Sequence[grpc.GenericRpcHandler],
    interceptors: Sequence[grpc.aio.ServerInterceptor],
    limits: Limits,
    listeners: int,
) -> grpc.aio.Server:
    """For one address of so many. Not started, and listening nowhere yet.

    interceptors: the outermost first, a guard last.
    """
    server = grpc.aio.server(
        interceptors=tuple(interceptors),
        options=server_options(limits, listeners),
        maximum_concurrent_rpcs=limits.transport_rpcs_max,
    )
    server.add_generic_rpc_handlers(tuple(handlers))
    return server


def server_options(limits: Limits, listeners: int) -> list[tuple[str, int]]:
    """Measured traps behind these: the names that look right are not always gRPC's."""
    connections = min(limits.connections_max, descriptors_beyond(limits.descriptors_kept))
    return [
        ("grpc.so_reuseport", 0),
        # Of each listener. One more is closed at once: its client hears UNAVAILABLE, not nothing.
        ("grpc.max_allowed_incoming_connections", max(1, connections // listeners)),
        ("grpc.server_handshake_timeout_ms", round(limits.handshake_s_max * 1000)),
        ("grpc.max_receive_message_length", limits.request_bytes_max),
        ("grpc.max_concurrent_streams", limits.transport_rpcs_max),
        # Between the soft limit and the hard one, which is twice as high, chance refuses.
        ("grpc.max_metadata_size", limits.metadata_bytes_max),
        ("grpc.absolute_max_metadata_size", limits.metadata_bytes_max),
        # Who pings every second lives, idle or on a silent stream. A ping is early if the last one
        # is younger; so many early ones, with no word of ours between them, end the connection.
        # Not one or two: what a stall held up comes all at once.
        ("grpc.http2.min_ping_interval_without_data_ms", 250),
        ("grpc.http2.max_ping_strikes", 60),
        ("grpc.keepalive_permit_without_calls", 1),
        # A peer that stopped answering is dropped; keepalive alone waits a minute for its ping.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
    ]

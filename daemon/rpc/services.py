"""The gRPC server with every service on it, and the options that it runs under.

A method without a behaviour is in the contract and not built yet: it answers UNIMPLEMENTED.
"""

from __future__ import annotations

from typing import cast

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from sapwood.daemon.rpc import boundary
from sapwood.daemon.rpc.boundary import Behaviour
from sapwood.daemon.rpc.cache_service import CacheService
from sapwood.daemon.rpc.entrance import Entrance
from sapwood.daemon.rpc.gate import Gate
from sapwood.daemon.rpc.generation_service import GenerationService
from sapwood.daemon.rpc.health_service import Health
from sapwood.scheduler.limits import Limits
from sapwood.v1 import cache_pb2, generation_pb2, session_pb2

GENERATION = boundary.service(generation_pb2.DESCRIPTOR, "GenerationService")
CACHE = boundary.service(cache_pb2.DESCRIPTOR, "CacheService")
SESSION = boundary.service(session_pb2.DESCRIPTOR, "SessionService")
HEALTH = boundary.service(health_pb2.DESCRIPTOR, "Health")
REFLECTION = boundary.service(reflection_pb2.DESCRIPTOR, "ServerReflection")
SERVICES = (GENERATION, CACHE, SESSION, HEALTH)


def service_names() -> list[str]:
    """Full names of what is served, reflection aside."""
    return [service.full_name for service in SERVICES]


def make_server(gate: Gate, health: Health, *, reflection: bool) -> grpc.aio.Server:
    """Not started, and listening nowhere yet."""
    limits = gate.limits
    server = grpc.aio.server(
        options=server_options(limits), maximum_concurrent_rpcs=limits.transport_rpcs_max
    )
    ours = Entrance(limits, limits.rpcs_max, gate.count_refused)
    others = Entrance(limits, limits.watches_max)  # answered even where ours are at their bound
    services: tuple[tuple[ServiceDescriptor, dict[str, Behaviour], Entrance], ...] = (
        (GENERATION, GenerationService(gate).behaviours(), ours),
        (CACHE, CacheService(gate).behaviours(), ours),
        (SESSION, {}, ours),
        (HEALTH, health.behaviours(), others),
    )
    handlers = [boundary.service_handler(*service) for service in services]
    if reflection:
        names = [*service_names(), REFLECTION.full_name]
        # The stubs call this async generator a coroutine.
        exchange = cast("boundary.Exchange", ReflectionServicer(names).ServerReflectionInfo)
        handlers.append(
            boundary.exchange_handler(REFLECTION, "ServerReflectionInfo", exchange, others)
        )
    server.add_generic_rpc_handlers(tuple(handlers))
    return server


def server_options(limits: Limits) -> list[tuple[str, int]]:
    """Measured traps behind these: the names that look right are not always gRPC's."""
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", limits.request_bytes_max),
        ("grpc.max_concurrent_streams", limits.transport_rpcs_max),
        ("grpc.max_metadata_size", limits.metadata_bytes_max),
        # Clients may ping through a long silent prefill without a GOAWAY.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # A peer that stopped answering is dropped; keepalive alone waits a minute for its ping.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
    ]

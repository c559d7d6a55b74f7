"""The listener that gateways connect to: plaintext, without tokens, so on loopback only.

One of its own: what a gateway may do here a client of the other listeners may not, and the other
way round. All that comes by it is one principal's.
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from sapwood.daemon.gateway.worker_service import WORKER, WorkerService
from sapwood.daemon.rpc import boundary
from sapwood.daemon.rpc.entrance import Entrance
from sapwood.daemon.rpc.gate import Gate
from sapwood.daemon.rpc.services import server_options

_CONNECTIONS_SHARE = 16  # a gateway needs one, so all of them get such a part of what there may be


def worker_server(
    gate: Gate, interceptors: Sequence[grpc.aio.ServerInterceptor]
) -> grpc.aio.Server:
    """Not started, and listening nowhere yet."""
    limits = gate.limits
    server = grpc.aio.server(
        interceptors=tuple(interceptors),
        options=server_options(limits, _CONNECTIONS_SHARE),
        maximum_concurrent_rpcs=limits.transport_rpcs_max,
    )
    # Replies have a lower bound of their own: whoever asks for health is answered beside them.
    entrance = Entrance(limits, limits.rpcs_max + limits.watches_max)
    behaviours = WorkerService(gate).behaviours()
    server.add_generic_rpc_handlers((boundary.service_handler(WORKER, behaviours, entrance),))
    return server

"""grpc.health.v1 on the event loop: SERVING between the model's load and drain or fault.

- Written here because grpcio's servicer writes to watchers while it holds the lock that changing
  the status needs: one watcher that does not read would hold up a drain.
- A service of the contract that is not built has no health: it is unknown, not SERVING.
- A watcher sees the latest status, not every one. `close` ends all watches, so that an open watch
  does not use up the server's whole grace at shutdown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import anyio
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from sapwood.daemon.rpc.boundary import Behaviour
from sapwood.daemon.rpc.call import Call
from sapwood.daemon.rpc.refusals import draining
from sapwood.scheduler.reasons import Reason, Refused

# Its types do not know it.
_list_response: Callable[[], Any] = vars(health_pb2)["HealthListResponse"]


class Health:
    """One status for the process and each of its services, given by their full names."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset({"", *services})
        self._serving = False
        self._closed = False
        self._changed = anyio.Event()

    def set_serving(self, serving: bool) -> None:
        """For the process and every service at once; wakes all watches."""
        self._serving = serving
        self._notify()

    def close(self) -> None:
        """NOT_SERVING for good; every watch ends."""
        self._closed = True
        self.set_serving(False)

    def behaviours(self) -> dict[str, Behaviour]:
        """By method of grpc.health.v1."""
        return {"Check": self._check, "List": self._list, "Watch": self._watch}

    async def _check(
        self, request: health_pb2.HealthCheckRequest, _call: Call
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in self._services:
            raise Refused(Reason.NOT_FOUND, "unknown service")
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def _list(self, _request: Any, _call: Call) -> Message:
        response = _list_response()
        for service in self._services:
            response.statuses[service].status = self._status(service)
        found: Message = response
        return found

    async def _watch(self, request: health_pb2.HealthCheckRequest, call: Call) -> None:
        sent: int | None = None
        while True:
            # Taken before the write: a change during the write must not be slept through.
            changed = self._changed
            status = self._status(request.service)
            if status != sent:
                await call.write(health_pb2.HealthCheckResponse(status=status))
                sent = status
            if self._closed:
                raise draining()
            await changed.wait()

    def _status(self, service: str) -> int:
        if service not in self._services:
            return health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        return (
            health_pb2.HealthCheckResponse.SERVING
            if self._serving
            else health_pb2.HealthCheckResponse.NOT_SERVING
        )

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

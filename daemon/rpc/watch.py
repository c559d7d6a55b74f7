"""What stands around every RPC, the guard included: an id, a count, and who is told of its end.

- An RPC has the id that its client showed in `x-request-id`, else one that is drawn here; it goes
  back in the trailers, however the RPC ends.
- What the guard or the entrance refuses is counted here as well. What gRPC itself refuses (unknown
  methods, messages that are too large) reaches nobody of ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from sapwood.daemon.rpc.call import Context
from sapwood.daemon.rpc.callers import caller_of_call
from sapwood.daemon.rpc.handlers import Handler, handler_parts
from sapwood.daemon.telemetry import calls
from sapwood.daemon.telemetry.calls import CallRecord
from sapwood.daemon.telemetry.telemetry import Telemetry
from sapwood.scheduler.reasons import Reason


class CallWatch(grpc.aio.ServerInterceptor):
    """The outermost interceptor of every server; may be shared."""

    def __init__(self, telemetry: Telemetry, deadline_slack_s: float) -> None:
        """deadline_slack_s: a client whose deadline passes cancels about then, by its own clock."""
        self._telemetry = telemetry
        self._slack_s = deadline_slack_s

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """The handler of whoever stands behind this one, watched."""
        method = handler_call_details.method.lstrip("/")
        record = CallRecord(method, handler_call_details.invocation_metadata or ())
        calls.enter_call(record)  # for the guard, which may refuse before there is a call
        handler = await continuation(handler_call_details)
        return None if handler is None else self._watched(handler, record)

    def _watched(self, handler: Handler, record: CallRecord) -> Handler:
        make, behaviour = handler_parts(handler)

        async def called(request: Any, context: Context) -> Any:
            context.set_trailing_metadata(((calls.REQUEST_ID, record.id),))
            record.peer = context.peer()
            self._telemetry.begin(record)
            try:
                working = behaviour(request, context)
                del request  # as the guard does, and for its reason
                return await working
            except asyncio.CancelledError:
                left_s = context.time_remaining()
                late = left_s is not None and left_s <= self._slack_s
                gone = Reason.DEADLINE_EXCEEDED if late else Reason.CANCELLED
                record.reason = record.reason or gone
                raise
            finally:
                if (caller := caller_of_call()) is not None:
                    record.principal = caller.principal.name
                self._telemetry.end(record)

        return make(
            called,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

"""Who may call what: an interceptor before every method of a server.

- Nothing is open but health. Users may generate, tokenise, ask what is served and pin what is
  theirs; what is not listed here, a service that is added tomorrow included, is for operators.
- One guard for each address: it knows whom a call is from that proves nothing, and whether
  connections come with certificates.
- Who is unknown, or may not, is refused before the request is parsed, but for what a certificate
  says: gRPC tells it with the request.
- Refusals carry no reason beside their status, and say nothing of what was sent.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc

from sapwood.daemon.rpc.call import Context, end_with
from sapwood.daemon.rpc.callers import Callers
from sapwood.daemon.rpc.handlers import Handler, handler_parts
from sapwood.daemon.rpc.principals import Identified
from sapwood.daemon.rpc.refusals import status_of
from sapwood.daemon.telemetry.calls import record_of_call
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.reasons import Reason, Refused

_OPEN = {"grpc.health.v1.Health"}
_FOR_USERS = {
    "sapwood.v1.GenerationService",
    "sapwood.v1.SessionService",
    "vllm.grpc.engine.VllmEngine",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    # Of a service whose other methods are for operators.
    "sapwood.v1.CacheService/PinPrefix",
    "sapwood.v1.CacheService/ListPins",
    "sapwood.v1.CacheService/UnpinPrefix",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """What an address says of who comes there.

    name: whose a call is that proves nothing; None: nobody's. certificates: every connection has
    proved one.
    """

    name: str | None
    certificates: bool = False


class Guard(grpc.aio.ServerInterceptor):
    """Of one address."""

    def __init__(self, callers: Callers, entry: Entry, limits: Limits) -> None:
        self._callers = callers
        self._entry = entry
        self._limits = limits

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """The method's own handler for who may call it, else one that refuses."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method.strip("/")
        if handler is None or _service(method) in _OPEN:
            return handler
        try:
            who = self._shown(handler_call_details.invocation_metadata)
            if who is not None:
                _require(method, who)
        except Refused as refusal:
            return self._refusing(handler, refusal)
        return self._entered(handler, method, who)

    def _shown(self, metadata: Any) -> Identified | None:
        """Whose a call with this metadata is; None where the certificate tells. Raises Refused."""
        directory, entry = self._callers.directory, self._entry
        shown = [value for key, value in metadata or () if key == "authorization"]
        if directory.uses_tokens and shown:
            return directory.by_token(shown)
        if entry.certificates:
            return None
        if entry.name is None:
            return directory.by_token(())
        return Identified(directory.named(entry.name))

    def _certified(self, context: Context) -> Identified:
        told = context.auth_context()
        uris, dns_names = ([_text(name) for name in told.get(key, ())] for key in _NAMES)
        return self._callers.directory.by_certificate(uris, dns_names)

    def _entered(self, handler: Handler, method: str, who: Identified | None) -> Handler:
        def enter(context: Context) -> None:
            found = who
            if found is None:
                found = self._certified(context)
                _require(method, found)
            self._callers.enter(found)

        async def called(request: Any, context: Context) -> Any:
            try:
                enter(context)
            except Refused as refusal:
                status = self._status(refusal.with_traceback(None))
            else:
                working = behaviour(request, context)
                del request  # what ends the call may keep this frame, and is not to keep that
                return await working
            del request
            await end_with(context, status)

        make, behaviour = handler_parts(handler)
        return make(
            called,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _refusing(self, handler: Handler, refusal: Refused) -> Handler:
        status = self._status(refusal)

        async def refuse(_request: Any, context: Context) -> None:
            await end_with(context, status)

        return handler_parts(handler)[0](refuse)

    def _status(self, refusal: Refused) -> grpc.Status:
        record_of_call().reason = refusal.reason
        return status_of(refusal, self._limits)


def _require(method: str, who: Identified) -> None:
    if not (who.principal.is_operator or _FOR_USERS & {method, _service(method)}):
        raise Refused(Reason.PERMISSION_DENIED, "this is for operators")


def _service(method: str) -> str:
    return method.partition("/")[0]


# As gRPC's core calls them in the context of a connection.
_NAMES = ("peer_uri", "peer_dns")


def _text(name: bytes) -> str:
    return name.decode(errors="replace")

"""The one error boundary around every RPC of every service.

- A method is served with its own deserializer: bytes that do not parse reach the boundary as
  `Malformed` and become INVALID_ARGUMENT (grpc.aio itself would answer UNKNOWN, with class names).
- A behaviour is a coroutine that returns its one response, or writes its stream and returns None.
  It never yields: an async generator is finalised in another task and breaks cancel scopes.
- What has more fields than a request may have is Malformed too, before objects are made of it.
  What is large waits for its parsing until the Entrance has a turn for it.
- Refused becomes its status; anything else that escapes is a bug of ours, logged without the
  exception's text (it may hold a prompt) and answered with a fixed message.
- Methods of a descriptor without a behaviour answer UNIMPLEMENTED.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from sapwood.daemon.faults import described
from sapwood.daemon.rpc.call import Call, Context
from sapwood.daemon.rpc.entrance import Entrance, Malformed, Unparsed
from sapwood.daemon.rpc.field_count import has_more_fields
from sapwood.daemon.rpc.refusals import internal, status_of
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.reasons import Reason, Refused

# The descriptor binds a behaviour to its message types at run time, so they are Any here.
Behaviour = Callable[[Any, Call], Awaitable[Message | None]]
Exchange = Callable[[AsyncIterator[Any]], AsyncIterator[Message]]

# Nothing that is no larger takes long to parse, whatever is in it.
_SMALL_BYTES = 64 * 1024

_log = logging.getLogger(__name__)


def service(file: Any, name: str) -> ServiceDescriptor:
    """A service of a file's descriptor, which is Python's or its C twin."""
    found: ServiceDescriptor = file.services_by_name[name]
    return found


def service_handler(
    service: ServiceDescriptor, behaviours: Mapping[str, Behaviour], entrance: Entrance
) -> grpc.GenericRpcHandler:
    """All methods of a service whose requests are single messages."""
    methods = {method.name: method for method in service.methods}
    assert behaviours.keys() <= methods.keys(), f"{service.full_name}: {list(behaviours)}"
    handlers = {
        name: _handler(method, behaviours.get(name, _unimplemented), entrance)
        for name, method in methods.items()
    }
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


def exchange_handler(
    service: str, method: MethodDescriptor, exchange: Exchange, entrance: Entrance
) -> grpc.GenericRpcHandler:
    """A service of this name with one bidirectional stream, which `method` describes."""

    async def wellformed(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            yield await entrance.message(request, method.full_name)

    async def behaviour(requests: AsyncIterator[Any], call: Call) -> None:
        async for response in exchange(wellformed(requests)):
            await call.write(response)

    handler = grpc.stream_stream_rpc_method_handler(
        _guarded(f"{service}.{method.name}", behaviour, entrance),
        request_deserializer=_parser(method, entrance.limits),
        response_serializer=_serialise,
    )
    return grpc.method_handlers_generic_handler(service, {method.name: handler})


def _handler(
    method: MethodDescriptor, behaviour: Behaviour, entrance: Entrance
) -> grpc.RpcMethodHandler[Any, Any]:
    assert not method.client_streaming, method.full_name
    make = (
        grpc.unary_stream_rpc_method_handler
        if method.server_streaming
        else grpc.unary_unary_rpc_method_handler
    )

    async def opened(request: Any, call: Call) -> Message | None:
        return await behaviour(await entrance.message(request, method.full_name), call)

    return make(
        _guarded(method.full_name, opened, entrance),
        request_deserializer=_parser(method, entrance.limits),
        response_serializer=_serialise,
    )


def _guarded(name: str, behaviour: Behaviour, entrance: Entrance) -> Any:
    async def handle(request: Any, context: Context) -> Message | None:
        call = Call(context)
        try:
            with entrance.place(name), call.allowed():
                return await behaviour(request, call)
        except Refused as refusal:
            call.record.reason = refusal.reason
            status = status_of(refusal, entrance.limits)
            # Whoever keeps it keeps the frames that it passed, and the request with them.
            refusal.with_traceback(None)
        except grpc.aio.InternalError:
            call.record.reason = Reason.CANCELLED
            return None  # the client went while a write was blocked; nobody is left to answer
        except Exception as bug:
            _log.error("%s failed with %s", name, described(bug))
            call.record.reason = Reason.INTERNAL
            status = status_of(internal(), entrance.limits)
        # gRPC keeps what abort raises, and with it this frame, in a cycle: until a collection.
        del request
        await call.abort(status)

    return handle


async def _unimplemented(_request: Any, _call: Call) -> Message | None:
    raise Refused(Reason.UNIMPLEMENTED, "not built yet")


def _parser(
    method: MethodDescriptor, limits: Limits
) -> Callable[[bytes], Message | Malformed | Unparsed]:
    message_class = GetMessageClass(method.input_type)
    fields_max = limits.request_fields_max

    def parse(data: bytes) -> Message | Malformed:
        try:
            return message_class.FromString(data)
        except DecodeError:
            return Malformed()

    def parse_large(data: bytes) -> Message | Malformed:
        if has_more_fields(data, method.input_type, fields_max):
            return Malformed(f"the request has more than {fields_max} fields")
        return parse(data)

    def take(data: bytes) -> Message | Malformed | Unparsed:
        large = len(data) > _SMALL_BYTES
        return Unparsed(partial(parse_large, data)) if large else parse(data)

    return take


def _serialise(message: Message) -> bytes:
    return message.SerializeToString()

"""The one error boundary around every RPC of every service.

- A method is served with its own deserializer: bytes that do not parse reach the boundary as
  `Malformed` and become INVALID_ARGUMENT (grpc.aio itself would answer UNKNOWN, with class names).
- A behaviour is a coroutine that returns its one response, or writes its stream and returns None.
  It never yields: an async generator is finalised in another task and breaks cancel scopes.
- Refused becomes its status; anything else that escapes is a bug of ours, logged without the
  exception's text (it may hold a prompt) and answered with a fixed message.
- Methods of a descriptor without a behaviour answer UNIMPLEMENTED.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import anyio
import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from sapwood.daemon.faults import described
from sapwood.daemon.rpc.refusals import internal, slow_reader, status_of
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.reasons import Reason, Refused

Context = grpc.aio.ServicerContext[Any, Any]
# The descriptor binds a behaviour to its message types at run time, so they are Any here.
Behaviour = Callable[[Any, Context], Awaitable[Message | None]]
Exchange = Callable[[AsyncIterator[Any], Context], AsyncIterator[Message]]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Malformed:
    """Request bytes that are not the method's message."""


def service(file: Any, name: str) -> ServiceDescriptor:
    """A service of a file's descriptor, which is Python's or its C twin."""
    found: ServiceDescriptor = file.services_by_name[name]
    return found


def service_handler(
    service: ServiceDescriptor, behaviours: Mapping[str, Behaviour], limits: Limits
) -> grpc.GenericRpcHandler:
    """All methods of a service whose requests are single messages."""
    methods = {method.name: method for method in service.methods}
    assert behaviours.keys() <= methods.keys(), f"{service.full_name}: {list(behaviours)}"
    handlers = {
        name: _handler(method, behaviours.get(name, _unimplemented), limits)
        for name, method in methods.items()
    }
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


def exchange_handler(
    service: str, method: MethodDescriptor, exchange: Exchange, limits: Limits
) -> grpc.GenericRpcHandler:
    """A service of this name with one bidirectional stream, which `method` describes."""

    async def behaviour(requests: AsyncIterator[Any], context: Context) -> None:
        async for response in exchange(_wellformed(requests), context):
            await context.write(response)

    handler = grpc.stream_stream_rpc_method_handler(
        _guarded(f"{service}.{method.name}", behaviour, limits),
        request_deserializer=_parser(method),
        response_serializer=_serialise,
    )
    return grpc.method_handlers_generic_handler(service, {method.name: handler})


def _handler(
    method: MethodDescriptor, behaviour: Behaviour, limits: Limits
) -> grpc.RpcMethodHandler[Any, Any]:
    assert not method.client_streaming, method.full_name
    make = (
        grpc.unary_stream_rpc_method_handler
        if method.server_streaming
        else grpc.unary_unary_rpc_method_handler
    )
    return make(
        _guarded(method.full_name, behaviour, limits),
        request_deserializer=_parser(method),
        response_serializer=_serialise,
    )


def _guarded(name: str, behaviour: Behaviour, limits: Limits) -> Any:
    async def handle(request: Any, context: Context) -> Message | None:
        try:
            return await behaviour(_checked(request), context)
        except Refused as refusal:
            answer = refusal
        except grpc.aio.InternalError:
            return None  # the client went while a write was blocked; nobody is left to answer
        except Exception as bug:
            _log.error("%s failed with %s", name, described(bug))
            answer = internal()
        await context.abort_with_status(status_of(answer, limits))
        raise AssertionError("abort_with_status returned")

    return handle


def _checked(request: Any) -> Any:
    if isinstance(request, Malformed):
        raise Refused(Reason.BAD_REQUEST, "the bytes of the request are not its message")
    return request


async def _wellformed(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _checked(request)


async def _unimplemented(_request: Any, _context: Context) -> Message | None:
    raise Refused(Reason.UNIMPLEMENTED, "not built yet")


def _parser(method: MethodDescriptor) -> Callable[[bytes], Message | Malformed]:
    message_class = GetMessageClass(method.input_type)

    def parse(data: bytes) -> Message | Malformed:
        try:
            return message_class.FromString(data)
        except DecodeError:
            return Malformed()

    return parse


def _serialise(message: Message) -> bytes:
    return message.SerializeToString()


async def write_in_time(context: Context, message: object, write_s_max: float) -> None:
    """One message of a stream without a mailbox; raises SLOW_READER if it is not taken in time."""
    with anyio.move_on_after(write_s_max) as scope:
        await context.write(message)
    if scope.cancelled_caught:
        raise slow_reader()

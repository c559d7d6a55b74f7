"""Server reflection, grpc.reflection.v1 and v1alpha, from the descriptors of this process.

- grpcio-reflection knows v1alpha alone. v1 is the same messages in another package, so one servicer
  answers both, in bytes that are the same; v1's own descriptors are made of v1alpha's.
- Every symbol of a service is found: Python's pool finds no methods.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import Any, cast

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from sapwood.daemon.rpc import boundary
from sapwood.daemon.rpc.entrance import Entrance

_NEW = "grpc.reflection.v1.ServerReflection"


def reflection_handlers(names: Iterable[str], entrance: Entrance) -> list[grpc.GenericRpcHandler]:
    """Both versions, each of which lists the services of these names and both of itself."""
    versions = [OLD_REFLECTION.full_name, NEW_REFLECTION.full_name]
    # The types of the servicer ask for the very class of the pool.
    pool = cast("descriptor_pool.DescriptorPool", _Pool())
    servicer = ReflectionServicer([*names, *versions], pool)

    def exchange(requests: AsyncIterator[Any]) -> AsyncIterator[Message]:
        # The stubs call this async generator a coroutine, and it ignores the context.
        responses: Any = servicer.ServerReflectionInfo(requests, cast("Any", None))
        return cast("AsyncIterator[Message]", responses)

    method = OLD_REFLECTION.methods_by_name["ServerReflectionInfo"]
    return [boundary.exchange_handler(version, method, exchange, entrance) for version in versions]


class _Pool:
    """All descriptors of the process, methods found."""

    def __init__(self) -> None:
        self._pool = descriptor_pool.Default()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:
        """Raises KeyError, as the pool does."""
        try:
            found: FileDescriptor = self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            name, _, method = symbol.rpartition(".")
            service = self._pool.FindServiceByName(name)
            found = service.methods_by_name[method].containing_service.file
        return found


def _new_version(old: Any) -> ServiceDescriptor:
    """The service of v1, put into the pool of all descriptors where nobody did before."""
    pool = descriptor_pool.Default()
    with suppress(KeyError):
        return pool.FindServiceByName(_NEW)
    proto = descriptor_pb2.FileDescriptorProto()
    old.CopyToProto(proto)
    text = text_format.MessageToString(proto).replace("v1alpha", "v1")
    renamed = text_format.Parse(text, descriptor_pb2.FileDescriptorProto())
    pool.AddSerializedFile(renamed.SerializeToString())
    return pool.FindServiceByName(_NEW)


OLD_REFLECTION = boundary.service(reflection_pb2.DESCRIPTOR, "ServerReflection")
NEW_REFLECTION = _new_version(reflection_pb2.DESCRIPTOR)

"""What interceptors do with a method's handler: take it apart, and make another of its kind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, cast

import grpc

from sapwood.daemon.rpc.call import Context

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
HandlerBehaviour = Callable[[Any, Context], Awaitable[Any]]


def handler_parts(handler: Handler) -> tuple[Callable[..., Handler], HandlerBehaviour]:
    """What makes a handler of the same kind, and what it calls."""
    match handler.request_streaming, handler.response_streaming:
        case False, False:
            found = grpc.unary_unary_rpc_method_handler, handler.unary_unary
        case False, True:
            found = grpc.unary_stream_rpc_method_handler, handler.unary_stream
        case True, False:
            found = grpc.stream_unary_rpc_method_handler, handler.stream_unary
        case _:
            found = grpc.stream_stream_rpc_method_handler, handler.stream_stream
    return cast("tuple[Callable[..., Handler], HandlerBehaviour]", found)

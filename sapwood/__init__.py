"""The public face of Sapwood: a typed client, sync and async, and the wire contract.

    with sapwood.Client() as client:
        for event in client.generate("Why is the sky blue?", max_tokens=64):
            ...

- `Client` and `AsyncClient` take and give plain values; protobuf stays behind them.
- The generated stubs live in `sapwood.v1`, for what the client does not cover.
- Importing this loads nothing: a name brings its module on first use (PEP 562), so that the pure
  core, which lives below this package too, never pulls in grpc. The client needs grpcio and
  protobuf only: no model, no mlx.
"""

from __future__ import annotations

from importlib import import_module

# To a type checker true by its name. `typing` itself takes longer than all of Python's start, and
# until sapwood/daemon/entry.py is imported a signal ends the process without a word.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from sapwood.client.async_client import AsyncClient
    from sapwood.client.async_stream import AsyncStream
    from sapwood.client.errors import (
        Cancelled,
        DeadlineExceeded,
        FailedPrecondition,
        InvalidArgument,
        NotFound,
        PermissionDenied,
        ResourceExhausted,
        SapwoodError,
        Unauthenticated,
        Unavailable,
        Unimplemented,
    )
    from sapwood.client.functions import IncompleteReply, ToolError, ToolRun, TooManyRounds
    from sapwood.client.sync_client import Client, Stream
    from sapwood.client.values import (
        Alternative,
        CacheOptions,
        CacheStats,
        Conversation,
        Delta,
        Event,
        Finish,
        FinishReason,
        Freed,
        GenerateOptions,
        LayerKind,
        Memory,
        Message,
        Model,
        Pin,
        Prefill,
        Prompt,
        Reply,
        Session,
        StoredBytes,
        Tier,
        TokenLogprobs,
        Tool,
        ToolCall,
        TreeNode,
        Usage,
    )

__version__ = "0.1.0"

__all__ = [
    "Alternative",
    "AsyncClient",
    "AsyncStream",
    "CacheOptions",
    "CacheStats",
    "Cancelled",
    "Client",
    "Conversation",
    "DeadlineExceeded",
    "Delta",
    "Event",
    "FailedPrecondition",
    "Finish",
    "FinishReason",
    "Freed",
    "GenerateOptions",
    "IncompleteReply",
    "InvalidArgument",
    "LayerKind",
    "Memory",
    "Message",
    "Model",
    "NotFound",
    "PermissionDenied",
    "Pin",
    "Prefill",
    "Prompt",
    "Reply",
    "ResourceExhausted",
    "SapwoodError",
    "Session",
    "StoredBytes",
    "Stream",
    "Tier",
    "TokenLogprobs",
    "TooManyRounds",
    "Tool",
    "ToolCall",
    "ToolError",
    "ToolRun",
    "TreeNode",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Usage",
    "__version__",
]

# Where to look for a name, the cheapest first: `values` imports nothing.
_MODULES = ("values", "errors", "functions", "sync_client", "async_stream", "async_client")

if not TYPE_CHECKING:  # to a type checker it would say that every name is there

    def __getattr__(name: str) -> object:
        """A public name, from its module; kept here, so that the next use finds it at once."""
        if name in __all__:
            for module in _MODULES:
                found = vars(import_module(f"{__name__}.client.{module}"))
                if name in found:
                    globals()[name] = found[name]
                    return found[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

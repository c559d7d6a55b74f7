"""The public face of Sapwood: a typed client, sync and async, and the wire contract.

    with sapwood.Client() as client:
        for event in client.generate("Why is the sky blue?", max_tokens=64):
            ...

- `Client` and `AsyncClient` take and give plain values; protobuf stays behind them.
- The generated stubs live in `sapwood.v1`, for what the client does not cover.
- Importing this needs grpcio and protobuf only: no model, no mlx.
"""

from sapwood.aio import AsyncClient, AsyncStream
from sapwood.client import Client, Stream
from sapwood.errors import (
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
from sapwood.values import (
    Alternative,
    CacheOptions,
    CacheStats,
    Conversation,
    Delta,
    Event,
    Finish,
    FinishReason,
    GenerateOptions,
    LayerKind,
    Memory,
    Message,
    Model,
    Prefill,
    Prompt,
    Reply,
    StoredBytes,
    Tier,
    TokenLogprobs,
    Tool,
    ToolCall,
    TreeNode,
    Usage,
)

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
    "GenerateOptions",
    "InvalidArgument",
    "LayerKind",
    "Memory",
    "Message",
    "Model",
    "NotFound",
    "PermissionDenied",
    "Prefill",
    "Prompt",
    "Reply",
    "ResourceExhausted",
    "SapwoodError",
    "StoredBytes",
    "Stream",
    "Tier",
    "TokenLogprobs",
    "Tool",
    "ToolCall",
    "TreeNode",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Usage",
]

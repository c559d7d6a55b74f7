"""Between the client's values and sapwood.v1: pure functions, shared by both clients.

- What the caller left out or gave as None stays unset on the wire, so that the daemon decides.
- Only types are checked here, by protobuf (TypeError, ValueError): the daemon is the one door.
- What only a newer daemon sends is left out: unknown events become None, unknown tiers and layers
  are not listed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, cast

from sapwood.client.values import (
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
    Messages,
    Model,
    Prefill,
    Prompt,
    StoredBytes,
    Tier,
    TokenLogprobs,
    Tool,
    ToolCall,
    TreeNode,
    Usage,
)
from sapwood.v1 import cache_pb2, generation_pb2, prompt_pb2

_SAMPLING = frozenset(generation_pb2.Sampling.DESCRIPTOR.fields_by_name)
_REASONS = {
    generation_pb2.FINISH_REASON_STOP: FinishReason.STOP,
    generation_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    generation_pb2.FINISH_REASON_STOP_SEQUENCE: FinishReason.STOP_SEQUENCE,
}
_NUMERICS = {generation_pb2.NUMERICS_FAST: "fast", generation_pb2.NUMERICS_STRICT: "strict"}
_TIERS = {cache_pb2.TIER_DEVICE: Tier.DEVICE, cache_pb2.TIER_DISK: Tier.DISK}
_LAYERS = {
    cache_pb2.LAYER_KIND_FULL: LayerKind.FULL,
    cache_pb2.LAYER_KIND_SLIDING: LayerKind.SLIDING,
}


def generate_request(prompt: Prompt, options: GenerateOptions) -> generation_pb2.GenerateRequest:
    """Raises TypeError for an unknown option, and TypeError or ValueError for a misfit value."""
    if unknown := options.keys() - GenerateOptions.__annotations__.keys():
        raise TypeError(f"generate() has no option {sorted(unknown)[0]!r}")
    values: dict[str, Any] = dict(options)
    cache: CacheOptions = values.pop("cache", None) or CacheOptions()
    if isinstance(values.get("stop"), str):
        values["stop"] = [values["stop"]]
    return generation_pb2.GenerateRequest(
        **_prompt(prompt),
        sampling=generation_pb2.Sampling(**{k: values.pop(k) for k in _SAMPLING & values.keys()}),
        cache=generation_pb2.CacheOptions(
            bypass=cache.bypass, store_reply=cache.store_reply, mark=cache.mark
        ),
        **values,
    )


def tokenize_request(
    prompt: str | Messages | Conversation,
) -> generation_pb2.TokenizeRequest:
    """As generate_request; token ids are no prompt here: ValueError."""
    return generation_pb2.TokenizeRequest(**_prompt(prompt))


def _prompt(prompt: Prompt) -> dict[str, Any]:
    """The field of the prompt oneof, by name."""
    if isinstance(prompt, str):
        return {"text": prompt}
    if isinstance(prompt, Conversation):
        return {"messages": _messages(prompt)}
    # By length: an array of ids has no truth value.
    if len(prompt) and isinstance(prompt[0], Message | Mapping):
        return {"messages": _messages(Conversation(cast("Messages", prompt)))}
    return {"token_ids": prompt_pb2.TokenIds(ids=cast("Sequence[int]", prompt))}


def _messages(conversation: Conversation) -> prompt_pb2.Messages:
    return prompt_pb2.Messages(
        messages=map(_message, conversation.messages),
        tools=map(_tool, conversation.tools),
        thinking=conversation.thinking,
    )


def _message(given: Message | Mapping[str, Any]) -> prompt_pb2.Message:
    message = given if isinstance(given, Message) else Message(**given)
    return prompt_pb2.Message(
        role=message.role,
        content=message.content,
        thinking=message.thinking,
        tool_calls=[
            prompt_pb2.ToolCall(name=call.name, arguments=json.dumps(dict(call.arguments)))
            for call in message.tool_calls
        ],
        tool_name=message.tool_name,
    )


def _tool(tool: Tool) -> prompt_pb2.Tool:
    parameters = json.dumps(dict(tool.parameters)) if tool.parameters is not None else ""
    return prompt_pb2.Tool(name=tool.name, description=tool.description, parameters=parameters)


def event(response: generation_pb2.GenerateResponse) -> Event | None:
    """None for a kind of event that only a newer daemon sends."""
    match response.WhichOneof("event"):
        case "prefill":
            prefill = response.prefill
            return Prefill(prefill.cached_tokens, prefill.processed_tokens, prefill.prompt_tokens)
        case "delta":
            return _delta(response.delta)
        case "finish":
            finish = response.finish
            return Finish(_REASONS[finish.reason], finish.stop_sequence, _usage(finish.usage))
        case _:
            return None


def _delta(delta: generation_pb2.Delta) -> Delta:
    calls = tuple(ToolCall(call.name, json.loads(call.arguments)) for call in delta.tool_calls)
    logprobs = tuple(map(_logprobs, delta.logprobs))
    return Delta(delta.text, tuple(delta.token_ids), delta.thinking, calls, logprobs)


def _logprobs(token: generation_pb2.TokenLogprobs) -> TokenLogprobs:
    alternatives = (Alternative(a.token_id, a.logprob) for a in token.alternatives)
    return TokenLogprobs(token.logprob, tuple(alternatives))


def _usage(usage: generation_pb2.Usage) -> Usage:
    return Usage(**_fields(usage, Usage))


def model(response: generation_pb2.GetModelResponse) -> Model:
    """`numerics` is empty for a promise that only a newer daemon makes."""
    values = _fields(response, Model)
    values["eos_token_ids"] = tuple(response.eos_token_ids)
    values["numerics"] = _NUMERICS.get(response.numerics, "")
    return Model(**values)


def cache_stats(response: cache_pb2.GetCacheStatsResponse) -> CacheStats:
    """Bytes of tiers and layers that only a newer daemon knows are left out."""
    values = _fields(response, CacheStats)
    values["stored"] = _stored(response.stored)
    values["memory"] = Memory(**_fields(response.memory, Memory))
    return CacheStats(**values)


def tree_node(node: cache_pb2.TreeNode) -> TreeNode:
    """A node at the top has no parent_id; text is None unless it was asked for."""
    values = _fields(node, TreeNode)
    values["parent_id"] = node.parent_id if node.HasField("parent_id") else None
    values["stored"] = _stored(node.stored)
    values["token_ids"] = tuple(node.token_ids)
    values["text"] = node.text if node.HasField("text") else None
    return TreeNode(**values)


def _stored(entries: Iterable[cache_pb2.StoredBytes]) -> StoredBytes:
    return {
        (_TIERS[entry.tier], _LAYERS[entry.layer]): entry.bytes
        for entry in entries
        if entry.tier in _TIERS and entry.layer in _LAYERS
    }


def _fields(message: Any, cls: type) -> dict[str, Any]:
    """The message's values under the names of a dataclass: the names of the wire are ours."""
    return {field.name: getattr(message, field.name) for field in fields(cls)}

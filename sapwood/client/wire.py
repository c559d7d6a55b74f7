"""Between the client's values and sapwood.v1: pure functions, shared by both clients.

- What the caller left out or gave as None stays unset on the wire, so that the daemon decides.
- Only types are checked here, in sapwood.client.fields: the daemon is the one door.
- What only a newer daemon sends is left out: unknown events become None, an unknown reason is
  FinishReason.UNKNOWN, unknown tiers and layers are not listed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from datetime import UTC
from typing import Any, TypeVar

from sapwood.client.fields import (
    add_integers,
    flag,
    given,
    items,
    json_object,
    seconds,
    set_fields,
    text,
    wrong_type,
)
from sapwood.client.session_wire import duration
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
    Messages,
    Model,
    Pin,
    Prefill,
    Prompt,
    Session,
    StoredBytes,
    Tier,
    TokenIds,
    TokenLogprobs,
    Tool,
    ToolCall,
    TreeNode,
    Usage,
)
from sapwood.v1 import cache_pb2, generation_pb2, model_pb2, prompt_pb2

_T = TypeVar("_T")
_SAMPLING = frozenset(generation_pb2.Sampling.DESCRIPTOR.fields_by_name)
_MESSAGE = frozenset(field.name for field in fields(Message))
_REASONS = {
    generation_pb2.FINISH_REASON_STOP: FinishReason.STOP,
    generation_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    generation_pb2.FINISH_REASON_STOP_SEQUENCE: FinishReason.STOP_SEQUENCE,
}
_CONSTRAINTS = frozenset({"json_schema", "regex", "grammar"})
_TOOL_CHOICES = {
    "auto": prompt_pb2.TOOL_CHOICE_MODE_AUTO,
    "none": prompt_pb2.TOOL_CHOICE_MODE_NONE,
    "required": prompt_pb2.TOOL_CHOICE_MODE_REQUIRED,
}
_NAMED: Mapping[str, Mapping[str, int]] = {
    "priority": {
        "interactive": generation_pb2.PRIORITY_INTERACTIVE,
        "normal": generation_pb2.PRIORITY_UNSPECIFIED,
        "batch": generation_pb2.PRIORITY_BATCH,
    },
    "deadline_policy": {
        "try": generation_pb2.DEADLINE_POLICY_UNSPECIFIED,
        "early": generation_pb2.DEADLINE_POLICY_EARLY,
    },
}
_NUMERICS = {generation_pb2.NUMERICS_FAST: "fast", generation_pb2.NUMERICS_STRICT: "strict"}
_SELF_CHECKS = {
    model_pb2.SELF_CHECK_OFF: "off",
    model_pb2.SELF_CHECK_COUNT: "count",
    model_pb2.SELF_CHECK_STOP: "stop",
}
_TIERS = {cache_pb2.TIER_DEVICE: Tier.DEVICE, cache_pb2.TIER_DISK: Tier.DISK}
_LAYERS = {
    cache_pb2.LAYER_KIND_FULL: LayerKind.FULL,
    cache_pb2.LAYER_KIND_SLIDING: LayerKind.SLIDING,
}


def generate_request(prompt: Prompt, options: GenerateOptions) -> generation_pb2.GenerateRequest:
    """Raises TypeError for an unknown option, and TypeError or ValueError for a misfit value."""
    if unknown := options.keys() - GenerateOptions.__annotations__.keys():
        raise TypeError(f"generate() has no option {sorted(unknown)[0]!r}")
    values: dict[str, Any] = {name: it for name, it in options.items() if it is not None}
    cache = given(values.pop("cache", CacheOptions()), CacheOptions, "cache", "a CacheOptions")
    named: dict[str, Any] = {name: _named(name, values.pop(name, None)) for name in _NAMED}
    if isinstance(values.get("stop"), str):
        values["stop"] = [values["stop"]]
    if len(constraints := sorted(values.keys() & _CONSTRAINTS)) > 1:
        raise TypeError(f"generate() takes one of {', '.join(constraints)}")
    if isinstance(values.get("json_schema"), Mapping):
        values["json_schema"] = json_object(values["json_schema"], "json_schema")
    choice = values.pop("tool_choice", None)
    given(values.pop("resumable", False), bool, "resumable", "True or False")
    if isinstance(values.get("session"), Session):
        values["session"] = values["session"].name
    sampling = {name: values.pop(name) for name in list(values) if name in _SAMPLING}
    request = generation_pb2.GenerateRequest(
        **_prompt(prompt),
        **named,
        sampling=set_fields(generation_pb2.Sampling(), sampling),
        cache=set_fields(generation_pb2.CacheOptions(), _fields(cache, CacheOptions), "cache."),
        tool_choice=None if choice is None else _tool_choice(choice),
    )
    return set_fields(request, values)


def _tool_choice(choice: Any) -> prompt_pb2.ToolChoice:
    if isinstance(choice, Tool):
        return prompt_pb2.ToolChoice(name=text(choice.name, "tool_choice.name"))
    mode = _TOOL_CHOICES.get(given(choice, str, "tool_choice", "a string or a Tool"))
    if mode is None:
        raise ValueError("tool_choice must be 'auto', 'none', 'required' or a Tool")
    return prompt_pb2.ToolChoice(mode=mode)


def tokenize_request(
    prompt: str | Messages | Conversation,
) -> generation_pb2.TokenizeRequest:
    """As generate_request; token ids are no prompt here: TypeError."""
    found = _prompt(prompt)
    if "token_ids" in found:
        wrong_type(prompt, "prompt", "text or messages")
    return generation_pb2.TokenizeRequest(**found)


def detokenize_request(token_ids: TokenIds) -> generation_pb2.DetokenizeRequest:
    """Raises TypeError or ValueError for what are no ids."""
    return set_fields(generation_pb2.DetokenizeRequest(), {"token_ids": token_ids})


def describe_tree_request(include_tokens: bool) -> cache_pb2.DescribeTreeRequest:
    """Raises TypeError for what is no bool."""
    return set_fields(cache_pb2.DescribeTreeRequest(), {"include_tokens": include_tokens})


def pin_prefix_request(prompt: Prompt, ttl: float | None) -> cache_pb2.PinPrefixRequest:
    """As generate_request, and for a ttl that is no time; one that is past is sent."""
    return cache_pb2.PinPrefixRequest(**_prompt(prompt), ttl=duration(ttl))


def evict_prefix_request(prompt: Prompt) -> cache_pb2.EvictPrefixRequest:
    """As generate_request."""
    return cache_pb2.EvictPrefixRequest(**_prompt(prompt))


def unpin_prefix_request(pin_id: str) -> cache_pb2.UnpinPrefixRequest:
    """Raises TypeError for what is no text."""
    return set_fields(cache_pb2.UnpinPrefixRequest(), {"pin_id": pin_id})


def deadline_s(timeout: float | None) -> float | None:
    """What gRPC takes for a timeout."""
    return seconds(timeout, "timeout")


def _named(field: str, name: Any) -> int | None:
    if name is None:
        return None
    names = _NAMED[field]
    found = names.get(text(name, field))
    if found is None:
        raise ValueError(f"{field} must be one of {', '.join(names)}")
    return found


def _prompt(prompt: Prompt) -> dict[str, Any]:
    """The field of the prompt oneof, by name."""
    if isinstance(prompt, str):
        return {"text": text(prompt, "prompt")}
    if isinstance(prompt, Conversation):
        return {"messages": _messages(prompt)}
    found = items(prompt, "prompt", "text, token ids, messages or a Conversation")
    if len(found) and isinstance(found[0], Message | Mapping):
        return {"messages": _messages(Conversation(found))}
    token_ids = prompt_pb2.TokenIds()
    add_integers(token_ids.ids, found, "prompt")
    return {"token_ids": token_ids}


def _messages(conversation: Conversation) -> prompt_pb2.Messages:
    """Errors name `messages` whether they came alone or in a Conversation."""
    thinking = conversation.thinking
    return prompt_pb2.Messages(
        messages=_each(_message, conversation.messages, "messages"),
        tools=_each(_tool, conversation.tools, "tools"),
        thinking=None if thinking is None else flag(thinking, "thinking"),
    )


def _each(translated: Callable[[Any, str], _T], values: Any, path: str) -> list[_T]:
    return [translated(value, f"{path}[{i}]") for i, value in enumerate(items(values, path))]


def _message(message: Any, path: str) -> prompt_pb2.Message:
    if isinstance(message, Message):
        message = _fields(message, Message)
    elif not isinstance(message, Mapping):
        wrong_type(message, path, "a Message or a mapping")
    if unknown := [name for name in message if name not in _MESSAGE]:
        raise TypeError(f"{path} has no field {unknown[0]!r}")
    if missing := [name for name in ("role", "content") if name not in message]:
        raise TypeError(f"{path} lacks {missing[0]!r}")
    calls = _each(_tool_call, message.get("tool_calls", ()), f"{path}.tool_calls")
    plain = {name: value for name, value in message.items() if name != "tool_calls"}
    return set_fields(prompt_pb2.Message(tool_calls=calls), plain, f"{path}.")


def _tool_call(call: Any, path: str) -> prompt_pb2.ToolCall:
    values = _fields(given(call, ToolCall, path, "a ToolCall"), ToolCall)
    values["arguments"] = json_object(values["arguments"], f"{path}.arguments")
    return set_fields(prompt_pb2.ToolCall(), values, f"{path}.")


def _tool(tool: Any, path: str) -> prompt_pb2.Tool:
    values = _fields(given(tool, Tool, path, "a Tool"), Tool)
    parameters = values["parameters"]
    values["parameters"] = (
        "" if parameters is None else json_object(parameters, f"{path}.parameters")
    )
    return set_fields(prompt_pb2.Tool(), values, f"{path}.")


def event(response: generation_pb2.GenerateResponse) -> Event | None:
    """None for a kind of event that only a newer daemon sends."""
    match response.WhichOneof("event"):
        case "prefill":
            return _prefill(response.prefill)
        case "delta":
            return _delta(response.delta)
        case "finish":
            finish = response.finish
            reason = _REASONS.get(finish.reason, FinishReason.UNKNOWN)
            return Finish(reason, finish.stop_sequence, _usage(finish.usage), finish.candidate)
        case _:
            return None


def _prefill(prefill: generation_pb2.Prefill) -> Prefill:
    logprobs = tuple(map(_logprobs, prefill.logprobs))
    counts = prefill.cached_tokens, prefill.processed_tokens, prefill.prompt_tokens
    return Prefill(*counts, logprobs)


def _delta(delta: generation_pb2.Delta) -> Delta:
    calls = tuple(_called(call) for call in delta.tool_calls)
    logprobs = tuple(map(_logprobs, delta.logprobs))
    ids, candidate = tuple(delta.token_ids), delta.candidate
    return Delta(delta.text, ids, delta.thinking, calls, logprobs, candidate)


def _called(call: prompt_pb2.ToolCall) -> ToolCall:
    return ToolCall(call.name, json.loads(call.arguments), call.id)


def _logprobs(token: generation_pb2.TokenLogprobs) -> TokenLogprobs:
    alternatives = (Alternative(a.token_id, a.logprob) for a in token.alternatives)
    return TokenLogprobs(token.logprob, tuple(alternatives))


def _usage(usage: generation_pb2.Usage) -> Usage:
    return Usage(**_fields(usage, Usage))


def model(response: generation_pb2.GetModelResponse) -> Model:
    """`numerics` and `self_check` are empty where only a newer daemon knows what they are."""
    values = _fields(response, Model)
    values["eos_token_ids"] = tuple(response.eos_token_ids)
    values["numerics"] = _NUMERICS.get(response.numerics, "")
    values["self_check"] = _SELF_CHECKS.get(response.self_check, "")
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


def pinned_prefix(message: cache_pb2.Pin) -> Pin:
    """Times are UTC's."""
    values = _fields(message, Pin)
    ends = message.expire_time.ToDatetime(UTC) if message.HasField("expire_time") else None
    return Pin(**values | {"expire_time": ends})


def freed(response: cache_pb2.EvictPrefixResponse | cache_pb2.ClearCacheResponse) -> Freed:
    """Both say the same."""
    return Freed(**_fields(response, Freed))


def _stored(entries: Iterable[cache_pb2.StoredBytes]) -> StoredBytes:
    return {
        (_TIERS[entry.tier], _LAYERS[entry.layer]): entry.bytes
        for entry in entries
        if entry.tier in _TIERS and entry.layer in _LAYERS
    }


def _fields(message: Any, cls: type) -> dict[str, Any]:
    """Values under the names of a dataclass, from one or from the wire: the names are the same."""
    return {field.name: getattr(message, field.name) for field in fields(cls)}

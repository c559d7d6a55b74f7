"""A conversation from the wire becomes the JSON values that chat templates take, or is Refused.

- Checked here: counts, who may carry what, that every tool's result answers a call. A template
  would silently drop a result that answers none.
- JSON texts are parsed here and nowhere else; objects only, no NaN. What their values take in time
  and memory is bounded by the number of commas and brackets in all of them.
- Contents are not looked at: they cannot become control tokens whatever they spell.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from sapwood.scheduler.limits import Limits
from sapwood.scheduler.reasons import Reason, Refused
from sapwood.v1 import prompt_pb2 as pb

SPEAKERS = frozenset({"system", "developer", "user", "assistant", "tool"})
_FIELDS_OF_ROLES = {
    "thinking": "assistant",
    "tool_calls": "assistant",
    "tool_name": "tool",
    "tool_call_id": "tool",
}


@dataclass(frozen=True, slots=True)
class TemplateConversation:
    """What Tokenizer.encode_messages takes: the form of transformers' apply_chat_template."""

    messages: Sequence[dict[str, Any]]
    tools: Sequence[dict[str, Any]]
    thinking: bool | None
    calls: Sequence[dict[str, Any]] = ()  # of the reply before, where their results come first


def conversation_of(
    given: pb.Messages,
    features: frozenset[str] | None,
    limits: Limits,
    called: Sequence[tuple[str, str]] = (),
) -> TemplateConversation:
    """`features`: what the model's template has a place for; None without one. Raises Refused.

    called: by the reply before the messages, where there is one: ids and names of functions.
    """
    if features is None:
        problem = f"the model has no chat template for messages {_with(bool(given.tools))} tools"
        raise Refused(Reason.UNSUPPORTED, problem, field="messages")
    if len(given.messages) > limits.messages_max:
        _bad(f"at most {limits.messages_max} messages", "messages.messages")
    if len(given.tools) > limits.tools_max:
        _bad(f"at most {limits.tools_max} tools", "messages.tools")
    if given.tools:
        _check_feature("tools", features, "messages.tools")
    if given.thinking:
        _check_feature("enable_thinking", features, "messages.thinking")
    objects = _Objects(limits.json_items_max)
    answers = bool(given.messages) and given.messages[0].role == "tool"
    calls = [_call(id, name, {}) for id, name in called] if answers else []
    return TemplateConversation(
        calls=calls,
        messages=_Turns(features, limits, objects, calls).turned(given.messages),
        tools=[_tool(tool, f"messages.tools[{i}]", objects) for i, tool in enumerate(given.tools)],
        thinking=given.thinking if given.HasField("thinking") else None,
    )


class _Turns:
    """Messages in order, with the calls that wait for their results."""

    def __init__(
        self,
        features: frozenset[str],
        limits: Limits,
        objects: _Objects,
        calls: Sequence[dict[str, Any]],
    ) -> None:
        self._features = features
        self._objects = objects
        self._calls_max = limits.tools_max
        self._call_id_bytes_max = limits.call_id_bytes_max
        self._unanswered = list(calls)

    def turned(self, messages: Sequence[pb.Message]) -> list[dict[str, Any]]:
        return [
            self._turn(message, f"messages.messages[{i}]") for i, message in enumerate(messages)
        ]

    def _turn(self, message: pb.Message, field: str) -> dict[str, Any]:
        if message.role not in SPEAKERS:
            _bad("role must be system, developer, user, assistant or tool", f"{field}.role")
        for name, role in _FIELDS_OF_ROLES.items():
            if getattr(message, name) and message.role != role:
                _bad(f"only role {role} has {name}", f"{field}.{name}")
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.name:
            if message.role == "tool":
                _bad("a tool's name is tool_name", f"{field}.name")
            _check_feature(f"name of {message.role}", self._features, f"{field}.name")
            turn["name"] = message.name
        if message.role == "tool":
            return turn | self._answer(message, field)
        self._unanswered = []
        if message.thinking:
            _check_feature("reasoning", self._features, f"{field}.thinking")
            # Templates know it by either name, and end it with the line break that replies have.
            thought = message.thinking.strip("\n")
            turn |= {"reasoning": thought, "reasoning_content": thought}
        if message.tool_calls:
            turn["tool_calls"] = self._calls(message.tool_calls, f"{field}.tool_calls")
        return turn

    def _calls(self, calls: Sequence[pb.ToolCall], field: str) -> list[dict[str, Any]]:
        _check_feature("tool_calls", self._features, field)
        if len(calls) > self._calls_max:
            _bad(f"at most {self._calls_max} calls", field)
        for index, call in enumerate(calls):
            if not call.name:
                _bad("a call needs the name of its tool", f"{field}[{index}].name")
            arguments = self._objects.parsed(call.arguments, f"{field}[{index}].arguments")
            id = self._unused(call.id or f"call_{index}", f"{field}[{index}].id")
            self._unanswered.append(_call(id, call.name, arguments))
        return list(self._unanswered)

    def _unused(self, id: str, field: str) -> str:
        """An id that no call before it in the message has."""
        if len(id.encode()) > self._call_id_bytes_max:
            _bad(f"at most {self._call_id_bytes_max} bytes", field)
        if any(call["id"] == id for call in self._unanswered):
            _bad("another call of the message has this id", field)
        return id

    def _answer(self, message: pb.Message, field: str) -> dict[str, Any]:
        """By id where one is given, else by name, the oldest first."""
        id, name = message.tool_call_id, message.tool_name
        for call in self._unanswered:
            called = call["function"]["name"]
            if (id and call["id"] != id) or (called != name and (name or not id)):
                continue
            self._unanswered.remove(call)
            return {"name": called, "tool_call_id": call["id"]}
        problem = "the assistant's message before it has no such call without a result"
        _bad(problem, f"{field}.tool_call_id" if id else f"{field}.tool_name")


def _call(id: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Templates match results by id, and without ids take any result for the last call's."""
    function = {"name": name, "arguments": arguments}
    return {"id": id, "type": "function", "function": function}


def _tool(tool: pb.Tool, field: str, objects: _Objects) -> dict[str, Any]:
    if not tool.name:
        _bad("a tool needs a name", f"{field}.name")
    function: dict[str, Any] = {"name": tool.name, "description": tool.description}
    function["parameters"] = objects.parsed(tool.parameters, f"{field}.parameters")
    return {"type": "function", "function": function}


class _Objects:
    """JSON objects of one conversation, which have a bounded number of values between them."""

    def __init__(self, items_max: int) -> None:
        self._items_max = items_max
        self._items = 0

    def parsed(self, text: str, field: str) -> dict[str, Any]:
        """A JSON object; empty text is an empty one."""
        if not text:
            return {}
        # Those inside of strings count too: this is what parsing costs at most, known before.
        self._items += sum(map(text.count, ",[{"))
        if self._items > self._items_max:
            _bad(f"all JSON has at most {self._items_max} commas and brackets", field)
        try:
            value = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            _bad("is not valid JSON", field)
        if not isinstance(value, dict):
            _bad("is not a JSON object", field)
        return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and Infinity, which are no JSON


def _check_feature(name: str, features: frozenset[str], field: str) -> None:
    if name not in features:
        problem = f"the model's chat template has no place for {field.rpartition('.')[2]}"
        raise Refused(Reason.UNSUPPORTED, problem, field=field)


def _with(some: bool) -> str:
    return "with" if some else "without"


def _bad(problem: str, field: str) -> NoReturn:
    raise Refused(Reason.BAD_REQUEST, problem, field=field)

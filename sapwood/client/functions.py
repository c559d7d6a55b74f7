"""Types as schemas, Python functions as tools, and what a model gave for them as values again.

- Needs pydantic, the extra `typed`, and imports it when something here is first used.
- Objects are closed: what a type does not name is neither written nor taken.
- What a model gives is never trusted: arguments are validated, and what does not fit is told to the
  model in words. What a function of the caller's raises is the caller's, but for a ToolError.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, NotRequired, TypeVar

from sapwood.client.values import (
    Conversation,
    FinishReason,
    Message,
    Messages,
    Reply,
    Tool,
    ToolCall,
)

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

_T = TypeVar("_T")


class IncompleteReply(ValueError):
    """The reply was cut before it was a whole document. `reply`: as far as it came."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(f"the reply ended with {reply.finish.reason}, before its document did")
        self.reply = reply


class ToolError(Exception):
    """Raised by a function that is a tool: its text is the call's result, for the model to read."""


class TooManyRounds(RuntimeError):
    """The model still called tools. `messages`: the conversation as far as it came."""

    def __init__(self, rounds: int, messages: Sequence[Message | Mapping[str, Any]]) -> None:
        super().__init__(f"the model still called tools after {rounds} rounds")
        self.messages = messages


@dataclass(frozen=True, slots=True)
class ToolRun:
    """The reply that called nothing any more, and the conversation up to it, itself included."""

    reply: Reply
    messages: Messages


class ReplyType(Generic[_T]):
    """A type, its schema, and values of it out of replies."""

    def __init__(self, of: type[_T]) -> None:
        self._adapter: TypeAdapter[_T] = _adapter(of)
        self.schema = _closed(self._adapter.json_schema())

    def read(self, reply: Reply) -> _T:
        """Raises IncompleteReply, and pydantic's ValidationError where a validator wants more."""
        if reply.finish.reason is not FinishReason.STOP:
            raise IncompleteReply(reply)
        return self._adapter.validate_json(reply.text)


class Toolbox:
    """Functions that the model may call, by their names."""

    def __init__(self, functions: Sequence[Callable[..., Any]]) -> None:
        """Their parameters need annotations. Raises TypeError."""
        self._functions = {function.__name__: _Function(function) for function in functions}
        if len(self._functions) < len(functions):
            raise TypeError("two of the functions have one name")

    def conversation(self, prompt: Messages | Conversation) -> Conversation:
        """What the first round is asked, with the functions as its tools."""
        begun = prompt if isinstance(prompt, Conversation) else Conversation(prompt)
        if begun.tools:
            raise TypeError("a conversation's tools are the functions here")
        return replace(begun, tools=[function.tool for function in self._functions.values()])

    def called(self, call: ToolCall) -> Any:
        """What the function returned, an awaitable where it is a coroutine's."""
        if (function := self._functions.get(call.name)) is None:
            raise ToolError(f"there is no tool {call.name!r}")
        return function.called(call.arguments)


def after(conversation: Conversation, *messages: Message) -> Conversation:
    """The conversation with these behind it."""
    return replace(conversation, messages=[*conversation.messages, *messages])


def result(call: ToolCall, value: Any) -> Message:
    """A call's result: text as it is, anything else as JSON."""
    text = value if isinstance(value, str) else _adapter(Any).dump_json(value).decode()
    return Message("tool", text, tool_name=call.name, tool_call_id=call.id)


def failure(call: ToolCall, error: ToolError) -> Message:
    """The result of a call that has none."""
    return result(call, {"error": str(error)})


class _Function:
    """One function. Positional-only and variadic parameters have no name to be called by."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._call = function
        hints = typing.get_type_hints(function, include_extras=True)
        kinds: dict[str, Any] = {}
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind not in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                raise TypeError(f"{function.__name__}: {name} cannot be given by its name")
            if name not in hints:
                raise TypeError(f"{function.__name__}: {name} has no annotation")
            needed = parameter.default is parameter.empty
            kinds[name] = hints[name] if needed else NotRequired[hints[name]]
        self._arguments = _arguments_of(kinds)
        schema = _closed(self._arguments.json_schema())
        self.tool = Tool(function.__name__, inspect.getdoc(function) or "", schema)

    def called(self, arguments: Mapping[str, Any]) -> Any:
        from pydantic import ValidationError

        try:
            known = self._arguments.validate_python(dict(arguments))
        except ValidationError as error:
            raise ToolError(_in_words(error)) from None
        return self._call(**known)


def _arguments_of(kinds: dict[str, Any]) -> TypeAdapter[dict[str, Any]]:
    """Of a dict, so that what is not given stays the function's own default."""
    from typing_extensions import TypedDict  # which pydantic brings, and wants before 3.12

    made: Any = TypedDict  # type checkers know those that are written out
    arguments = made("arguments", kinds)
    arguments.__pydantic_config__ = {"extra": "forbid"}
    return _adapter(arguments)


def _adapter(of: Any) -> TypeAdapter[Any]:
    try:
        from pydantic import TypeAdapter
    except ImportError:
        problem = "pydantic is needed for types and functions: pip install 'sapwood[typed]'"
        raise ImportError(problem) from None
    return TypeAdapter(of)


def _closed(schema: Any) -> Any:
    """The schema with no properties but those it names, wherever it says nothing of others."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "properties" in schema and isinstance(schema["properties"], dict):
        schema = {"additionalProperties": False} | schema
    return {key: _closed(value) for key, value in schema.items()}


def _in_words(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, p['loc'])) or 'it'}: {p['msg']}" for p in problems)

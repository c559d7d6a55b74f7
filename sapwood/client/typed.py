"""Replies that are objects of a type, and replies that call Python functions, for both clients.

- A round is one `generate`, with a timeout of its own. Rounds have a bound.
- The functions of a reply run one after another, in its order, before the next round.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, Unpack

from sapwood.client.functions import (
    ReplyType,
    Toolbox,
    ToolError,
    ToolRun,
    TooManyRounds,
    after,
    failure,
    result,
)
from sapwood.client.values import (
    Conversation,
    GenerateOptions,
    Message,
    Messages,
    Prompt,
    Reply,
    ToolCall,
)

ROUNDS_MAX = 8

_T = TypeVar("_T")


class _Stream(Protocol):
    def collect(self) -> Reply: ...


class _Generates(Protocol):
    def generate(
        self, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> _Stream: ...


class _AsyncStream(Protocol):
    async def collect(self) -> Reply: ...


class _AsyncGenerates(Protocol):
    def generate(
        self, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> _AsyncStream: ...


class TypedCalls:
    """Of the synchronous client."""

    def parse(
        self: _Generates,
        prompt: Prompt,
        of: type[_T],
        *,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> _T:
        """The reply as a value of a type: a dataclass, a TypedDict, a pydantic model.

        The reply is held to the type's JSON schema. Raises IncompleteReply where it was cut.
        """
        shape = ReplyType(of)
        options = _held(options, shape)
        return shape.read(self.generate(prompt, timeout=timeout, **options).collect())

    def run_tools(
        self: _Generates,
        prompt: Messages | Conversation,
        functions: Sequence[Callable[..., Any]],
        *,
        rounds_max: int = ROUNDS_MAX,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> ToolRun:
        """Lets the model call functions until a reply calls none. Raises TooManyRounds.

        A function's docstring and annotations tell the model what it is for. A `tool_choice` that
        asks for a call holds for the first round. What a function raises ends the run, but for a
        ToolError, whose text the model reads.
        """
        if any(map(inspect.iscoroutinefunction, functions)):
            raise TypeError("AsyncClient calls coroutine functions")
        toolbox = Toolbox(functions)
        conversation = toolbox.conversation(prompt)
        for _ in range(rounds_max):
            reply = self.generate(conversation, timeout=timeout, **options).collect()
            conversation = after(conversation, reply.message())
            if not reply.tool_calls:
                return ToolRun(reply, conversation.messages)
            results = [_answered(toolbox, call) for call in reply.tool_calls]
            conversation = after(conversation, *results)
            options = _of_later_rounds(options)
        raise TooManyRounds(rounds_max, conversation.messages)


class AsyncTypedCalls:
    """Of the asynchronous client. Functions may be coroutines; others run in a thread."""

    async def parse(
        self: _AsyncGenerates,
        prompt: Prompt,
        of: type[_T],
        *,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> _T:
        """As the synchronous client's."""
        shape = ReplyType(of)
        options = _held(options, shape)
        return shape.read(await self.generate(prompt, timeout=timeout, **options).collect())

    async def run_tools(
        self: _AsyncGenerates,
        prompt: Messages | Conversation,
        functions: Sequence[Callable[..., Any]],
        *,
        rounds_max: int = ROUNDS_MAX,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> ToolRun:
        """As the synchronous client's."""
        toolbox = Toolbox(functions)
        conversation = toolbox.conversation(prompt)
        for _ in range(rounds_max):
            reply = await self.generate(conversation, timeout=timeout, **options).collect()
            conversation = after(conversation, reply.message())
            if not reply.tool_calls:
                return ToolRun(reply, conversation.messages)
            results = [await _awaited(toolbox, call) for call in reply.tool_calls]
            conversation = after(conversation, *results)
            options = _of_later_rounds(options)
        raise TooManyRounds(rounds_max, conversation.messages)


def _answered(toolbox: Toolbox, call: ToolCall) -> Message:
    try:
        return result(call, toolbox.called(call))
    except ToolError as error:
        return failure(call, error)


async def _awaited(toolbox: Toolbox, call: ToolCall) -> Message:
    try:
        value = await asyncio.to_thread(toolbox.called, call)
        return result(call, await value if inspect.isawaitable(value) else value)
    except ToolError as error:
        return failure(call, error)


def _held(options: GenerateOptions, shape: ReplyType[Any]) -> GenerateOptions:
    if taken := {"json_schema", "regex", "grammar"} & options.keys():
        raise TypeError(f"parse() makes the constraint itself, and takes no {min(taken)}")
    return {**options, "json_schema": shape.schema}


def _of_later_rounds(options: GenerateOptions) -> GenerateOptions:
    """Without a choice that asks for a call, which would ask for another one for ever."""
    if options.get("tool_choice") in ("auto", "none", None):
        return options
    return {**options, "tool_choice": "auto"}

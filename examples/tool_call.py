"""A tool call, there and back: the model calls, this program looks up, the model answers.

    python examples/tool_call.py "Do I need a coat in Paris?"

It needs a model whose chat template knows tools. The bundled demo model's does not: the daemon then
refuses the request by the name of the field.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from sapwood import Client, Conversation, FailedPrecondition, Message, Tool

WEATHER = Tool(
    name="weather",
    description="The weather of a place now.",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
)
ROUNDS_MAX = 4


def look_up(name: str, arguments: Mapping[str, Any]) -> str:
    """A model writes what it likes: names and arguments are not to be trusted."""
    if name != WEATHER.name or not isinstance(arguments.get("city"), str):
        return "there is no such tool"
    return f"8 degrees and rain in {arguments['city']}"


def main() -> None:
    messages = [Message("user", " ".join(sys.argv[1:]) or "Do I need a coat in Paris?")]
    with Client() as client:
        for _ in range(ROUNDS_MAX):
            try:
                reply = client.generate(Conversation(messages, [WEATHER]), temperature=0).collect()
            except FailedPrecondition as error:
                sys.exit(f"this model takes no tools: {', '.join(error.fields) or error}")
            if not reply.tool_calls:
                print(reply.text)
                return
            messages.append(reply.message())
            for call in reply.tool_calls:
                result = look_up(call.name, call.arguments)
                print(f"{call.name}({dict(call.arguments)}) = {result}")
                messages.append(Message("tool", result, tool_name=call.name))
    sys.exit(f"the model still called tools after {ROUNDS_MAX} rounds")


if __name__ == "__main__":
    main()

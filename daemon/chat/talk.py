"""One conversation of `sapwood chat`: what was said, what is set, and whose turn it is.

- A call of a tool is answered before the model goes on: while one is open, what is said next is its
  result, in the order of the calls.
- What was asked and got no answer is taken back, so that turns alternate; `retry` asks it again.
- A thought is kept while its turn goes on, with calls and results: templates drop it afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from sapwood import Conversation, Message, Tool, ToolCall


@dataclass(slots=True)
class Talk:
    """options: GenerateOptions that were set, by name."""

    system: str = ""
    thinking: bool | None = None
    tools: tuple[Tool, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)
    unanswered: Message | None = None  # what was taken back last

    def conversation(self) -> Conversation:
        """What the model is to continue."""
        system = [Message("system", self.system)] if self.system else []
        return Conversation([*system, *self.messages], self.tools, self.thinking)

    def copy(self) -> Talk:
        """One that goes on apart from this one."""
        return replace(self, options=dict(self.options), messages=list(self.messages))

    def clear(self) -> None:
        """Nothing was said; what is set stays."""
        self.messages.clear()
        self.unanswered = None

    @property
    def open_call(self) -> ToolCall | None:
        """The first call that has no result yet."""
        for results, message in enumerate(reversed(self.messages)):
            if message.role != "tool":
                return next(iter(message.tool_calls[results:]), None)
        return None

    def say(self, text: str) -> bool:
        """A user's turn, or a tool's result; whether it is the model's turn now."""
        call = self.open_call
        if call is None:
            self.messages.append(Message("user", text))
        else:
            result = Message("tool", text, tool_name=call.name, tool_call_id=call.id)
            self.messages.append(result)
        self.unanswered = None
        return self.open_call is None

    def answer(self, reply: Message) -> None:
        """The model's turn; one that says nothing takes the question back."""
        if reply.content or reply.tool_calls:
            self.messages.append(reply if reply.tool_calls else replace(reply, thinking=""))
        elif self.messages:
            self.unanswered = self.messages.pop()

    def retry(self) -> bool:
        """Whether there is something to ask again; then it is the model's turn."""
        if self.unanswered is not None:
            self.messages.append(self.unanswered)
            self.unanswered = None
            return self.open_call is None
        kept = len(self.messages)
        while kept and self.messages[kept - 1].role == "assistant":
            kept -= 1
        if kept == len(self.messages) or not kept:
            return False
        del self.messages[kept:]
        return True

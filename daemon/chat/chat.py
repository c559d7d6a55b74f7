"""`sapwood chat` between two lines: the conversation, its branches, and one reply after another.

- No error of the daemon, of a setting or of a file ends the chat, and none takes away what was
  said: a question without an answer is taken back, for `/retry`.
- Ctrl-C stops a reply; what came of it stays in the conversation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from sapwood import Client, Delta, Event, Finish, Message, Model, SapwoodError, ToolCall
from sapwood.daemon.advice import advised
from sapwood.daemon.chat.endings import figures, why_cut
from sapwood.daemon.chat.reply_view import ReplyView
from sapwood.daemon.chat.talk import Talk
from sapwood.daemon.errors import UsageError

FIRST_BRANCH = "main"
TALKS_MAX = 100


class Surroundings(Protocol):
    """Where a chat is held: a terminal, or a pipe."""

    def reply_view(self) -> ReplyView:
        """For one reply."""

    def note(self, text: str) -> None:
        """What is neither reply nor error."""

    def count(self, text: str) -> None:
        """What a reply took."""

    def complain(self, text: str) -> None:
        """An error, in one line."""

    def stopped(self) -> None:
        """A reply was stopped by Ctrl-C. May raise KeyboardInterrupt: it was all meant."""


class HeldChat:
    """One chat with one daemon. `talk` is the branch that goes on."""

    def __init__(self, client: Client, model: Model, talk: Talk, around: Surroundings) -> None:
        self.model = model
        self.branches = {FIRST_BRANCH: talk}
        self.branch = FIRST_BRANCH
        self.last_thought = ""
        self._client = client
        self._around = around

    @property
    def talk(self) -> Talk:
        """What is said on this branch."""
        return self.branches[self.branch]

    def take(self, talk: Talk) -> None:
        """Go on with another one on this branch."""
        self.branches[self.branch] = talk

    def say(self, text: str) -> None:
        """A user's message or a tool's result, and the reply once it is the model's turn."""
        if self.talk.say(text):
            self.answer()

    def retry(self) -> bool:
        """Ask the last question again; whether there was one."""
        if not self.talk.retry():
            return False
        self.answer()
        return True

    def answer(self) -> None:
        """Show the model's reply and keep it, or what came of it."""
        heard = _Heard()
        try:
            self._hear(heard)
        except KeyboardInterrupt:
            heard.cut = "stopped"
            self._around.stopped()
        except SapwoodError as error:
            self._around.complain(advised(error, self._client.address))
            heard.cut = "cut by the error" if heard.message.content else ""
        except UsageError as error:
            self._around.complain(str(error))
        self.last_thought = "".join(heard.thoughts) or self.last_thought
        self.talk.answer(heard.message)
        if heard.finish is not None:
            self._around.count(figures(heard.finish))
            heard.cut = why_cut(heard.finish, self.model.context_tokens_max)
        notes = [heard.cut] if heard.cut else []
        if self.talk.unanswered is not None:
            notes += ["the reply is empty"] if heard.finish is not None else []
            notes.append("/retry asks again")
        if notes:
            self._around.note("; ".join(notes))

    def _hear(self, heard: _Heard) -> None:
        talk = self.talk
        try:
            stream = self._client.generate(talk.conversation(), **talk.options)
        except (ValueError, TypeError) as error:  # the client's own: nothing was sent
            raise UsageError(str(error)) from None
        with stream as events, self._around.reply_view() as view:
            for event in events:
                heard.add(event)
                view.show(event)


@dataclass(slots=True)
class _Heard:
    """What has come of one reply."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    finish: Finish | None = None
    cut: str = ""

    def add(self, event: Event) -> None:
        if isinstance(event, Delta):
            self.texts.append(event.text)
            self.thoughts.append(event.thinking)
            self.calls += event.tool_calls
        elif isinstance(event, Finish):
            self.finish = event

    @property
    def message(self) -> Message:
        return Message("assistant", "".join(self.texts), "".join(self.thoughts), tuple(self.calls))

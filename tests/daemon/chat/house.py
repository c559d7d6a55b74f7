"""A chat without a daemon: a client that says what it is told to, and what is shown of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from sapwood import Client, Conversation, Delta, Event, Finish, FinishReason, Model, Usage
from sapwood.daemon.chat.chat import HeldChat
from sapwood.daemon.chat.reply_view import ReplyView
from sapwood.daemon.chat.run import Terminal
from sapwood.daemon.chat.talk import Talk

CONTEXT = 100
MODEL = Model("toy", "family", "00", CONTEXT, 300, (1,), "", "", "fast", "cpu")


def finish(
    reason: FinishReason = FinishReason.STOP, stop: str = "", prompt: int = 10, completion: int = 5
) -> Finish:
    return Finish(reason, stop, Usage(prompt, 4, completion, 2, 2, 3, 2, 0.0, 0.1, 2.0))


def said(text: str, **others: Any) -> list[Event]:
    return [Delta(text, (1,), **others), finish()]


class Scripted:
    """A client: each reply is a list of events, of which an exception is raised."""

    address = "unix:/toy"

    def __init__(self, *replies: Sequence[Event | BaseException]) -> None:
        self.replies = list(replies)
        self.asked: list[Conversation] = []
        self.options: list[dict[str, Any]] = []

    @contextmanager
    def generate(self, prompt: Conversation, **options: Any) -> Iterator[Iterator[Event]]:
        self.asked.append(Conversation(list(prompt.messages), prompt.tools, prompt.thinking))
        self.options.append(options)
        yield self._events(self.replies.pop(0))

    def _events(self, events: Sequence[Event | BaseException]) -> Iterator[Event]:
        for event in events:
            if isinstance(event, BaseException):
                raise event
            yield event

    def get_model(self) -> Model:
        return MODEL


class Silent:
    """Keeps what would be said."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.complaints: list[str] = []

    def reply_view(self) -> ReplyView:
        return _Unseen()

    def note(self, text: str) -> None:
        self.notes.append(text)

    def count(self, text: str) -> None:
        self.notes.append(text)

    def complain(self, text: str) -> None:
        self.complaints.append(text)

    def stopped(self) -> None: ...


class _Unseen:
    def show(self, event: Event) -> None: ...
    def __enter__(self) -> _Unseen:
        return self

    def __exit__(self, *_error: object) -> None: ...


def chat_with(
    *replies: Sequence[Event | BaseException],
    around: Callable[[], Silent | Terminal] = Silent,
) -> tuple[HeldChat, Scripted, Any]:
    client, shown = Scripted(*replies), around()
    return HeldChat(cast("Client", client), MODEL, Talk(), shown), client, shown

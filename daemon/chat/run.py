"""`sapwood chat` from its first line to its last: on a terminal, or between pipes.

- On a terminal: an editor for lines, Markdown for replies, and notes beside them. Exit code 0.
- Between pipes each line of standard input is a message, and so is what stands between two triple
  quotes; standard output gets replies and nothing else, standard error what is said of them. Exit
  code 1 where something failed; Ctrl-C ends it.
"""

from __future__ import annotations

import os
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import TextIO

from rich.console import Console
from rich.text import Text

from sapwood import Client
from sapwood.daemon.chat.chat import FIRST_BRANCH, HeldChat, Surroundings
from sapwood.daemon.chat.commands import FAREWELLS, read_command, run_command
from sapwood.daemon.chat.markdown_flow import harmless
from sapwood.daemon.chat.plain_editor import Editor, PlainEditor
from sapwood.daemon.chat.plain_reply import PlainReply
from sapwood.daemon.chat.quotes import is_open, unquoted
from sapwood.daemon.chat.reply_view import MarkdownReply, ReplyView
from sapwood.daemon.chat.talk import Talk
from sapwood.daemon.errors import UsageError

LINE_CHARS_MAX = 4 * 1024 * 1024


def hold_chat(client: Client, talk: Talk) -> int:
    """Talk until the end of input or `/bye`; returns the exit code. Raises SapwoodError.

    That only at the start, where there is no daemon to talk to.
    """
    if sys.stdin.isatty() and sys.stdout.isatty():
        return _on_terminal(client, talk)
    model = client.get_model()
    around = Pipes()
    held = HeldChat(client, model, talk, around)
    for line in lines_of(sys.stdin):
        if not step(held, around, line):
            break
    return 1 if around.failed else 0


def _on_terminal(client: Client, talk: Talk) -> int:
    around = Terminal(Console(highlight=False))
    with around.console.status("waiting for the model", spinner="dots"):
        model = client.get_model()
    held = HeldChat(client, model, talk, around)
    around.note(f"{model.name} at {client.address}. /help lists commands, Ctrl-D leaves.")
    hold_on_terminal(held, around, _editor(held, around))
    return 0


def _editor(held: HeldChat, around: Surroundings) -> Editor:
    if find_spec("prompt_toolkit") is None:
        around.note('for history and completion: pip install "sapwood[chat]"')
        return PlainEditor()
    from sapwood.daemon.chat.line_editor import LineEditor, history_file, open_history

    return LineEditor(held, open_history(history_file(os.environ)))


def hold_on_terminal(held: HeldChat, around: Surroundings, editor: Editor) -> None:
    """Line by line, until the end."""
    goes_on = True
    while goes_on:
        with suppress(KeyboardInterrupt):  # the line is cleared, or it came between two answers
            goes_on = _next_line(held, around, editor)


def _next_line(held: HeldChat, around: Surroundings, editor: Editor) -> bool:
    try:
        line = editor.read(_prompt(held))
    except EOFError:
        return False
    with keys_unseen(sys.stdin):
        return step(held, around, line)


def _prompt(held: HeldChat) -> str:
    call = held.talk.open_call
    if call is not None:
        return f"{harmless(call.name)} returns> "
    return "> " if held.branch == FIRST_BRANCH else f"{held.branch}> "


def step(held: HeldChat, around: Surroundings, line: str) -> bool:
    """One line: a command or a message. Whether there may be another."""
    command = read_command(line)
    if command is None:
        if line.strip():
            held.say(line)
        return True
    name, given = command
    if name in FAREWELLS:
        return False
    try:
        for shown in run_command(held, name, given):
            around.note(shown)
    except UsageError as error:
        around.complain(str(error))
    return True


class Terminal:
    """Notes are dim, errors red."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def reply_view(self) -> ReplyView:
        """Markdown."""
        return MarkdownReply(self.console)

    def note(self, text: str) -> None:
        """Dim, wrapped by words."""
        self.console.print(Text(harmless(text), style="dim"))

    def count(self, text: str) -> None:
        """As a note."""
        self.note(text)

    def complain(self, text: str) -> None:
        """In red."""
        self.console.print(Text(harmless(text), style="red"))

    def stopped(self) -> None:
        """Nothing more: that was what was meant."""


class Pipes:
    """Replies to standard output, all else to standard error. failed: whether anything did."""

    def __init__(self) -> None:
        self.failed = False

    def reply_view(self) -> ReplyView:
        """The text alone."""
        return PlainReply(sys.stdout)

    def note(self, text: str) -> None:
        """As it is."""
        print(text, file=sys.stderr)

    def count(self, text: str) -> None:
        """Nobody looks at it."""

    def complain(self, text: str) -> None:
        """As every command does."""
        self.failed = True
        print(f"sapwood: {text}", file=sys.stderr)

    def stopped(self) -> None:
        """Nobody is there to go on."""
        raise KeyboardInterrupt


def lines_of(stream: TextIO) -> Iterator[str]:
    """Line by line, and what stands between quotes as one. Raises UnicodeError."""
    text = ""
    while line := stream.readline(LINE_CHARS_MAX):
        line.encode()  # where standard input lets pass what is no UTF-8
        text += line
        if len(text) < LINE_CHARS_MAX and is_open(text):
            continue
        yield unquoted(text.rstrip("\n"))
        text = ""
    if text:
        yield unquoted(text.rstrip("\n"))


@contextmanager
def keys_unseen(stream: TextIO) -> Iterator[None]:
    """What is typed meanwhile waits for the next line, and is not written into the reply."""
    echo: Callable[[], None] = _echo_off(stream)
    try:
        yield
    finally:
        echo()


def _echo_off(stream: TextIO) -> Callable[[], None]:
    """Gives what turns it on again; nothing happens where there is no terminal."""
    with suppress(OSError, ValueError, termios.error):
        terminal = stream.fileno()
        before = termios.tcgetattr(terminal)
        quiet = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
        termios.tcsetattr(terminal, termios.TCSANOW, quiet)
        return lambda: termios.tcsetattr(terminal, termios.TCSANOW, before)
    return lambda: None

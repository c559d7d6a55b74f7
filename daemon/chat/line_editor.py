"""How a line is read on a terminal: history across runs, completion, texts of several lines.

- Enter sends. A paste is inserted whole, lines and all, and sent by one Enter; between triple
  quotes Enter makes a new line, and Alt-Enter does so anywhere.
- Ctrl-C clears what is typed. Ctrl-D on an empty line is the end.
- The history is a file for its owner alone, of bounded size; without one that can be written there
  is a history of this run.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output

from sapwood.daemon.chat.chat import HeldChat
from sapwood.daemon.chat.commands import COMMANDS, completed
from sapwood.daemon.chat.quotes import is_open, unquoted

HISTORY_BYTES_MAX = 1 << 20


class LineEditor:
    """Reads what is said in one chat."""

    def __init__(
        self,
        chat: HeldChat,
        history: History,
        input: Input | None = None,
        output: Output | None = None,
    ) -> None:
        """input, output: of prompt_toolkit; None: the terminal."""
        self._session: PromptSession[str] = PromptSession(
            history=history,
            multiline=True,
            key_bindings=_keys(),
            completer=_Commands(chat),
            complete_while_typing=True,
            prompt_continuation=lambda width, number, wraps: "… ".rjust(width),
            reserve_space_for_menu=4,
            input=input,
            output=output,
        )

    def read(self, prompt: str) -> str:
        """One message. Raises EOFError at the end, KeyboardInterrupt where the line was cleared."""
        text = self._session.prompt(prompt)
        # What is no UTF-8 comes in as surrogates, which nobody can be sent.
        return unquoted(text.encode(errors="surrogateescape").decode(errors="replace"))


def _keys() -> KeyBindings:
    keys = KeyBindings()
    typing = has_focus(DEFAULT_BUFFER)  # what is looked for with Ctrl-R has keys of its own

    @keys.add("enter", filter=typing)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=typing)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("tab", filter=typing)
    def _(event: KeyPressEvent) -> None:
        """One word at once: what is looked for as one types may still be on its way."""
        buffer = event.current_buffer
        asked = CompleteEvent(completion_requested=True)
        found = list(buffer.completer.get_completions(buffer.document, asked))
        if buffer.complete_state is None and len(found) == 1:
            buffer.apply_completion(found[0])
        elif buffer.complete_state is None:
            buffer.start_completion(insert_common_part=True)
        else:
            buffer.complete_next()

    return keys


class _Commands(Completer):
    """Names of commands, what they take, and files."""

    def __init__(self, chat: HeldChat) -> None:
        self._chat = chat
        self._files = PathCompleter(expanduser=True)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """Called by prompt_toolkit as one types."""
        line = document.text_before_cursor
        word, choices = completed(line, self._chat)
        yield from (Completion(choice, -len(word)) for choice in choices)
        head, space, rest = line.partition(" ")
        command = COMMANDS.get(head.removeprefix("/"))
        if line.startswith("/") and space and command is not None and command.takes_file:
            yield from self._files.get_completions(Document(rest, len(rest)), complete_event)


def history_file(environ: Mapping[str, str]) -> Path:
    """Where others keep such files too."""
    state = environ.get("XDG_STATE_HOME")
    folder = Path(state) if state else Path(environ.get("HOME") or Path.home(), ".local", "state")
    return folder / "sapwood" / "history"


def open_history(path: Path) -> History:
    """What was said in earlier runs."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        if path.stat().st_size > HISTORY_BYTES_MAX:
            path.write_bytes(b"".join(_newest(path.read_bytes().splitlines(keepends=True))))
    except OSError:
        return InMemoryHistory()
    return _History(path)


class _History(FileHistory):
    def store_string(self, string: str) -> None:
        """A full disk takes no line, and ends nothing."""
        with suppress(OSError):
            super().store_string(string)


def _newest(lines: list[bytes]) -> Iterator[bytes]:
    """The newer half, from where an entry begins."""
    begins = (i for i in range(len(lines) // 2, len(lines)) if lines[i].startswith(b"# "))
    yield from lines[next(begins, len(lines)) :]

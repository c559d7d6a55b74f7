"""How a line is read on a terminal where prompt_toolkit is not installed: by Python's own input."""

from __future__ import annotations

from contextlib import suppress
from typing import Protocol

from sapwood.daemon.chat.quotes import is_open, unquoted


class Editor(Protocol):
    """Reads what is said."""

    def read(self, prompt: str) -> str:
        """One message. Raises EOFError at the end, KeyboardInterrupt where the line was cleared."""


class PlainEditor:
    """Line by line, with the arrow keys where Python has readline."""

    def __init__(self) -> None:
        with suppress(ImportError):
            __import__("readline")  # from here on input has it

    def read(self, prompt: str) -> str:
        """As Editor.read; between triple quotes a text has several lines."""
        try:
            text = input(prompt)
            while is_open(text):
                text += "\n" + input("… ")
        except (EOFError, KeyboardInterrupt):
            print()
            raise
        return unquoted(text.encode(errors="surrogateescape").decode(errors="replace"))

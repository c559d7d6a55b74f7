"""A reply as a pipe gets it."""

from __future__ import annotations

import json
from types import TracebackType
from typing import Self, TextIO

from sapwood import Delta, Event


class PlainReply:
    """The text alone, as it comes; a call is a line of JSON. Nothing is wrapped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last = "\n"

    def show(self, event: Event) -> None:
        """Text and calls; a thought is no text."""
        if isinstance(event, Delta):
            self._write(event.text)
            for call in event.tool_calls:
                line = json.dumps({"name": call.name, "arguments": dict(call.arguments)})
                self._write(("" if self._last == "\n" else "\n") + line + "\n")

    def _write(self, text: str) -> None:
        if text:
            self._stream.write(text)
            self._stream.flush()
            self._last = text[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._last != "\n":
            self._write("\n")

"""How a reply is shown while it comes: as Markdown on a terminal, else as it is.

- On a terminal what stands is printed once and scrolls away like any text; only the block that is
  still open is drawn anew, at most as many lines of it as there is room for. Words stay whole.
- A thought is folded: one moving line while it lasts, one that stays when it is over.
- Whatever ends the reply, what came of it is on the screen.
"""

from __future__ import annotations

import json
import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from sapwood import Delta, Event, Prefill, ToolCall
from sapwood.daemon.chat.markdown_flow import MarkdownFlow, OpenBlock, drawn, harmless

_REFRESH_PER_S = 12
_THOUGHT_CHARS = 400  # of a thought's end, more than a line of it


class ReplyView(Protocol):
    """Shows the events of one reply; entered before the first and left after the last."""

    def show(self, event: Event) -> None:
        """The next event."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class MarkdownReply:
    """On a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._flow = MarkdownFlow()
        self._printed = False
        self._prefill: Prefill | None = None
        self._thought = ""
        self._thinks_since: float | None = None
        # Not the renderable itself: rich calls it from a thread of its own.
        self._live = Live(self, console=console, refresh_per_second=_REFRESH_PER_S, transient=True)

    def show(self, event: Event) -> None:
        """What it adds is seen within a moment."""
        if isinstance(event, Prefill):
            self._prefill = event
        elif isinstance(event, Delta):
            if event.thinking:
                self._think(event.thinking)
            if event.text or event.tool_calls:
                self._fold()
            self._print(self._flow.add(event.text))
            for call in event.tool_calls:
                self._print(self._flow.close())
                self._console.print(Text(_spelled(call), style="yellow"))

    def _think(self, text: str) -> None:
        if self._thinks_since is None:
            self._thinks_since = time.monotonic()
        self._thought += harmless(text)

    def _fold(self) -> None:
        """One line for a thought that is over."""
        if self._thinks_since is not None:
            lasted_s = time.monotonic() - self._thinks_since
            words = len(self._thought.split())
            self._thinks_since, self._thought = None, ""
            folded = f"▸ thought for {lasted_s:.1f} s, {words} words (/show thinking)"
            self._console.print(Text(folded, style="dim"))

    def _print(self, markup: str) -> None:
        if markup.strip():
            if self._printed:
                self._console.print()
            self._printed = True
            self._console.print(drawn(markup))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """What moves, below what stands."""
        if self._flow.open.strip():
            if self._printed:
                yield Text()
            yield OpenBlock(self._flow.open)
        elif self._thinks_since is not None:
            lasted_s = time.monotonic() - self._thinks_since
            last = " ".join(self._thought[-_THOUGHT_CHARS:].split())
            line = f"… thinking, {lasted_s:.0f} s  {last}"
            room = max(10, console.width - len(line) + len(last))
            yield Text(line[: len(line) - len(last)] + last[-room:], style="dim", no_wrap=True)
        elif (begun := self._prefill) is not None and begun.processed_tokens < begun.prompt_tokens:
            told = f"… reading, {begun.processed_tokens} of {begun.prompt_tokens} tokens"
            yield Text(told, style="dim")
        elif not self._printed:
            yield Text("…", style="dim")

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        rest = self._flow.close()
        self._live.stop()
        self._fold()
        self._print(rest)


def _spelled(call: ToolCall) -> str:
    given = ", ".join(f"{name}={json.dumps(value)}" for name, value in call.arguments.items())
    return harmless(f"→ {call.name}({given})")

"""The streams as a person watches them: panels in a terminal, lines anywhere else.

- A view only reads dialogues; what it shows is what their clients have seen so far.
- While a reply streams, its accepted drafts are the tokens beyond one of each message; the final
  table has the daemon's usage instead.
- A tick is cheap: it shares a process with the clients and must not make them slow readers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from sapwood.daemon.demo.dialogue import Dialogue, Turn, TurnState

_COLUMNS = 2
_PANEL_ROWS_MIN = 2
_FRAME_ROWS = 2
_COLOURS = {
    TurnState.WAITING: "bright_black",
    TurnState.PREFILL: "yellow",
    TurnState.STREAMING: "cyan",
    TurnState.DONE: "green",
    TurnState.CANCELLED: "red",
}


class View(Protocol):
    """Shows one phase at a time."""

    def showing(self, title: str, dialogues: Sequence[Dialogue]) -> AbstractContextManager[None]:
        """Show the dialogues while the body runs and changes them."""

    def tick(self) -> None:
        """Show what is new; on the event loop of the clients, inside of `showing` only."""


class LiveView:
    """Panels that fill up; the last frame stays on the screen, with every reply in full."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._title = ""
        self._conversations: Sequence[Dialogue] = ()

    @contextmanager
    def showing(self, title: str, dialogues: Sequence[Dialogue]) -> Iterator[None]:
        """View.showing; leaves a last frame with every reply in full."""
        self._title, self._conversations = title, dialogues
        with Live(console=self._console, auto_refresh=False) as self._live:
            yield
            self._live.update(panels(title, dialogues), refresh=True)

    def tick(self) -> None:
        """View.tick: draws the whole frame, each reply cut to what the terminal has room for."""
        if self._live is not None:
            rows = -(-len(self._conversations) // _COLUMNS)
            height = (self._console.height - 2) // max(rows, 1) - _FRAME_ROWS
            frame = panels(self._title, self._conversations, max(height, _PANEL_ROWS_MIN))
            self._live.update(frame, refresh=True)


class PlainView:
    """A line for every question, first token and end, in the order of the cast at each tick."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told: set[tuple[str, int, str]] = set()
        self._conversations: Sequence[Dialogue] = ()

    @contextmanager
    def showing(self, title: str, dialogues: Sequence[Dialogue]) -> Iterator[None]:
        """View.showing; forgets what it told of an earlier phase."""
        self._told, self._conversations = set(), dialogues
        self._console.print(Text(title, style="bold"))
        yield

    def tick(self) -> None:
        """View.tick: prints what was not told yet, never a line twice."""
        for dialogue in self._conversations:
            for index, turn in enumerate(dialogue.turns):
                for step, line in _story(turn):
                    told = (dialogue.part.id, index, step)
                    if told not in self._told:
                        self._told.add(told)
                        said = Text(f"  {dialogue.part.id:<8} {line}")
                        self._console.print(said, soft_wrap=True)


def panels(
    title: str, dialogues: Sequence[Dialogue], text_rows: int | None = None
) -> RenderableType:
    """All streams. text_rows: newest lines of a reply to show; None is all of it."""
    grid = Table.grid(expand=True)
    for _ in range(_COLUMNS):
        grid.add_column(ratio=1)
    for first in range(0, len(dialogues), _COLUMNS):
        row = dialogues[first : first + _COLUMNS]
        grid.add_row(*(_panel(dialogue, text_rows) for dialogue in row))
    return Group(Text(title, style="bold"), grid)


def _panel(dialogue: Dialogue, text_rows: int | None) -> Panel:
    colour = _COLOURS[dialogue.state]
    body = Text(overflow="fold")
    for index, turn in enumerate(dialogue.turns):
        asked = dialogue.part.follow_up if index else dialogue.part.question
        body.append(f"{asked}\n", style="bright_black")
        body.append(turn.text + ("" if turn is dialogue.turns[-1] else "\n"))
    if dialogue.state is TurnState.CANCELLED:
        body.append(" ✂", style="red")
    return Panel(
        body if text_rows is None else _Tail(body, text_rows),
        title=Text.assemble((dialogue.part.id, "bold"), f" {dialogue.state}"),
        subtitle=_pace(dialogue),
        title_align="left",
        subtitle_align="right",
        border_style=colour,
        height=None if text_rows is None else text_rows + _FRAME_ROWS,
    )


class _Tail:
    """The last `rows` lines of a text as it wraps in its panel."""

    def __init__(self, text: Text, rows: int) -> None:
        self._text = text
        self._rows = rows

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        lines = self._text.wrap(console, options.max_width)
        yield Text("\n").join(lines[-self._rows :])


def _pace(dialogue: Dialogue) -> Text:
    pace = dialogue.tokens_per_s(time.perf_counter())
    if pace is None:
        return Text("")
    accepted = sum(map(_accepted, dialogue.turns))
    return Text(f"{dialogue.tokens} tokens · {pace:.0f}/s · {accepted} drafts accepted")


def _accepted(turn: Turn) -> int:
    if turn.finish is not None:
        return turn.finish.usage.accepted_tokens
    return sum(max(tokens - 1, 0) for tokens in turn.message_tokens)


def _story(turn: Turn) -> Iterator[tuple[str, str]]:
    """(step, what to say of it) for the steps that a turn has reached."""
    yield "asked", f"asks with {len(turn.prompt_ids)} tokens"
    if turn.first_token is not None:
        cached = turn.cached_tokens  # over HTTP not told before the reply's end
        told = "" if cached is None else f", {cached} tokens cached"
        yield "first", f"first token after {turn.first_token - turn.asked:.2f} s{told}"
    if turn.ended is not None:
        took = f"{len(turn.token_ids)} tokens, {turn.ended - turn.asked:.2f} s"
        yield "ended", f"{turn.outcome} after {took}: {turn.text}"

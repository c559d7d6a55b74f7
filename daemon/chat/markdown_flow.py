"""Markdown while it comes: what of it stands, and what may still become something else.

- A block at the top (paragraph, list, table, fence) stands once a line of another one is complete
  behind it: nothing that follows changes it any more. The last block is open.
- HTML is text here: a reply is shown to the letter, and rich leaves tags out.
- A line break is one, where CommonMark has a space: models wrap no lines, they write verse.
- No control character of a reply reaches a terminal.
"""

from __future__ import annotations

import re

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import Markdown
from rich.segment import Segment
from rich.text import Text

_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_OPEN_LINES_MAX = 200  # of a block that is drawn as Markdown while it grows


class MarkdownFlow:
    """The Markdown of one reply."""

    def __init__(self) -> None:
        self.open = ""

    def add(self, text: str) -> str:
        """What stands now and did not before, whole blocks, or nothing."""
        text = harmless(text)
        self.open += text
        if "\n" not in text:
            return ""
        lines = self.open.split("\n")
        starts = _starts("\n".join(lines[:-1]))
        if len(starts) < 2:
            return ""
        self.open = "\n".join(lines[starts[-1] :])
        return "\n".join(lines[: starts[-1]])

    def close(self) -> str:
        """What was open: the reply is at its end."""
        rest, self.open = self.open, ""
        return rest


def _starts(text: str) -> list[int]:
    """The lines on which blocks at the top begin."""
    tokens = _PARSER.parse(text)
    return [t.map[0] for t in tokens if t.level == 0 and t.nesting >= 0 and t.map is not None]


def harmless(text: str) -> str:
    """Without what moves a terminal's cursor, or does worse."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def drawn(markup: str) -> Markdown:
    """For a console. Links show where they lead; a line that ends, ends."""
    markdown = Markdown("", hyperlinks=False)
    markdown.parsed = _PARSER.parse(markup)
    for token in markdown.parsed:
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"
    return markdown


class OpenBlock:
    """The last lines of what is open, as many as a terminal has room for."""

    def __init__(self, markup: str) -> None:
        self._markup = markup

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = max(1, console.height - 3)
        lines = self._markup.split("\n")
        if len(lines) > _OPEN_LINES_MAX:
            yield Text("\n".join(lines[-room:]), no_wrap=True, overflow="ellipsis")
            return
        shown = console.render_lines(drawn(self._markup), options, pad=False)[-room:]
        for line in shown:
            yield from (*line, Segment.line())

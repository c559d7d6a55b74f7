"""Markdown while it comes: blocks stand once nothing can change them; nothing is lost."""

from __future__ import annotations

import io
import random
import re
from contextlib import suppress

import pytest
from rich.console import Console

from sapwood import Delta, Prefill, ToolCall
from sapwood.daemon.chat.markdown_flow import MarkdownFlow, drawn, harmless
from sapwood.daemon.chat.plain_reply import PlainReply
from sapwood.daemon.chat.reply_view import MarkdownReply

TEXT = """# A title

A paragraph with a very long-winded sentence that needs to be wrapped somewhere, **bold** and all.
Second line.

1. one

2. two
   - inner

```python
def f() -> int:

    return 1
```

| a | b |
|---|---|
| 1 | 2 |

> quoted
text that ends <b>here</b>"""


def pieces(text: str, seed: int) -> list[str]:
    cuts = sorted(random.Random(seed).sample(range(1, len(text)), 60))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@pytest.mark.parametrize("seed", range(5))
def test_blocks_are_the_text_and_are_the_same_however_it_comes(seed: int) -> None:
    flow = MarkdownFlow()
    blocks = [block for piece in pieces(TEXT, seed) if (block := flow.add(piece))]
    blocks.append(flow.close())
    assert "\n".join(blocks) == TEXT
    assert [block.split("\n")[0] for block in blocks] == [
        "# A title",
        "A paragraph with a very long-winded sentence that needs to be wrapped somewhere, "
        "**bold** and all.",
        "1. one",
        "```python",
        "| a | b |",
        "> quoted",
    ]


def test_an_open_fence_is_one_block() -> None:
    flow = MarkdownFlow()
    assert flow.add("```\na\n\nb\n\n# c\n") == ""
    assert flow.add("```\nx\n") == "```\na\n\nb\n\n# c\n```"


def test_a_terminal_gets_no_control_characters() -> None:
    assert harmless("a\x1b[2Jb\r\n\x9bc\td") == "a\ufffd[2Jb\n\ufffdc\td"


def drawn_text(markup: str) -> str:
    console = Console(file=io.StringIO(), width=60)
    console.print(drawn(markup))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_tags_and_targets_are_shown() -> None:
    assert "<b>bold</b>" in drawn_text("<b>bold</b> text")
    assert "<div>" in drawn_text("<div>\nalone\n</div>")
    assert "https://example.org/x" in drawn_text("[here](https://example.org/x)")


def test_a_line_that_ends_ends() -> None:
    """Verse, and lists without a mark: models wrap no lines."""
    lines = drawn_text("Red\nBlue\n**Green**\n\n- one\n  more\n").splitlines()
    assert [line.strip() for line in lines] == ["Red", "Blue", "Green", "", "• one", "more"]


def shown(events: list[object], width: int = 40) -> str:
    """What stays on a terminal, without styles and what was drawn over."""
    file = io.StringIO()
    console = Console(file=file, width=width, height=20, force_terminal=True, color_system=None)
    with MarkdownReply(console) as view:
        for event in events:
            view.show(event)  # type: ignore[arg-type]
    text = file.getvalue()
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is back
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_words_stay_whole() -> None:
    text = shown([Delta(piece, (1,)) for piece in pieces(TEXT, 1)])
    last = text[text.rindex("A paragraph") :]
    for word in ("long-winded", "sentence", "somewhere,", "bold"):
        assert re.search(rf"(^|\s){word}(\s|$)", last), last
    assert "def f() -> int:" in last and "<b>here</b>" in last


def test_a_thought_is_folded() -> None:
    text = shown([Prefill(0, 5, 10), Delta("", (1,), "hm so"), Delta("yes", (2,), " then")])
    assert re.search(r"▸ thought for \d\.\d s, 3 words", text)
    assert text.rstrip().endswith("yes")
    assert "hm so then" not in text.rpartition("▸")[2]


def test_a_call_is_shown_between_texts() -> None:
    call = ToolCall("weather", {"city": "Paris", "days": 2})
    text = shown([Delta("First.", (1,)), Delta("", (2,), tool_calls=(call,))])
    assert text.index("First.") < text.index('→ weather(city="Paris", days=2)')


def test_what_came_is_on_the_screen_whatever_ends_it() -> None:
    file = io.StringIO()
    console = Console(file=file, width=40, force_terminal=True, color_system=None)
    with suppress(KeyboardInterrupt), MarkdownReply(console) as view:
        view.show(Delta("half of", (1,)))
        raise KeyboardInterrupt
    assert file.getvalue().rstrip().endswith("half of")


def test_a_pipe_gets_the_text_alone() -> None:
    file = io.StringIO()
    with PlainReply(file) as view:
        view.show(Prefill(0, 1, 1))
        view.show(Delta("# a *b*", (1,), "thought"))
        view.show(Delta("", (1,), tool_calls=(ToolCall("now", {"x": 1}),)))
    assert file.getvalue() == '# a *b*\n{"name": "now", "arguments": {"x": 1}}\n'

"""What a person sees while it runs, as panels and as lines."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from sapwood import Delta, Prefill
from sapwood.daemon.demo.dialogue import Dialogue, Prompts
from sapwood.daemon.demo.script import CAST
from sapwood.daemon.demo.view import LiveView, PlainView, View, panels
from tests.daemon.demo.told import told

RIVER, FOX, BOAT = CAST[0], CAST[1], CAST[4]
WORDS = [[ord(letter)] for letter in "A river flows."]


def console(width: int = 100, height: int = 30, terminal: bool = False) -> Console:
    return Console(
        file=io.StringIO(), width=width, height=height, force_terminal=terminal, color_system=None
    )


def shown(on: Console) -> str:
    return on.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_plain_lines_tell_each_step_of_each_turn_once() -> None:
    on = console()
    view = PlainView(on)
    dialogue = told(FOX, WORDS, [[33, 6]], cached=(0, 16))
    with view.showing("together", [dialogue]):
        view.tick()
        view.tick()
    lines = shown(on).splitlines()
    assert lines[0] == "together"
    assert [line.split()[1] for line in lines[1:]] == ["asks", "first", "stop"] * 2
    assert "A river flows." in lines[3]


@pytest.mark.parametrize("make", [LiveView, PlainView])
def test_a_view_shows_clients_in_every_state(make: type[LiveView | PlainView]) -> None:
    waiting = Dialogue(RIVER, Prompts((2, 7), 6))
    prefill = Dialogue(RIVER, Prompts((2, 7), 6))
    prefill.ask((2, 7), 0.0)
    streaming = Dialogue(RIVER, Prompts((2, 7), 6))
    streaming.ask((2, 7), 0.0)
    streaming.note(Prefill(0, 2, 2), 0.0)
    streaming.note(Delta("so far", (30, 31)), 1.0)
    on = console(terminal=True)
    view: View = make(on)
    with view.showing("together", [waiting, prefill, streaming, told(BOAT, WORDS)]):
        view.tick()
    assert "river" in shown(on)


def test_panels_show_the_newest_lines_of_a_long_reply_in_a_small_terminal() -> None:
    on = console(width=60)
    long = [[ord(letter)] for letter in "word " * 60 + "END"]
    on.print(panels("together", [told(RIVER, long)], text_rows=2))
    text = shown(on)
    assert "END" in text
    assert RIVER.question not in text
    assert len(text.splitlines()) == 1 + 2 + 2


def test_the_last_frame_has_every_reply_in_full() -> None:
    on = console(terminal=True, height=10)
    view = LiveView(on)
    long = [[ord(letter)] for letter in "word " * 60 + "END"]
    with view.showing("together", [told(RIVER, long), told(BOAT, WORDS)]):
        view.tick()
    last = shown(on).rpartition("together")[2]
    assert RIVER.question in last and "END" in last
    assert BOAT.question in last and "A river flows." in last

"""The editor of lines, typed at through a pipe."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from sapwood.daemon.chat import run
from sapwood.daemon.chat.chat import HeldChat
from sapwood.daemon.chat.line_editor import (
    HISTORY_BYTES_MAX,
    LineEditor,
    history_file,
    open_history,
)
from sapwood.daemon.chat.plain_editor import PlainEditor
from sapwood.daemon.chat.quotes import is_open, unquoted
from sapwood.daemon.chat.run import hold_on_terminal
from tests.daemon.chat.house import Silent, chat_with, said
from tests.daemon.process.processes import wait_for

ENTER, ALT_ENTER, CTRL_C, CTRL_D, CTRL_R, UP, TAB = (
    "\r",
    "\x1b\r",
    "\x03",
    "\x04",
    "\x12",
    "\x1b[A",
    "\t",
)


@contextmanager
def typing(held: HeldChat, path: Path | None = None) -> Iterator[tuple[PipeInput, LineEditor]]:
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        history = InMemoryHistory() if path is None else open_history(path)
        yield keys, LineEditor(held, history, keys, DummyOutput())


def read(*keys: str, path: Path | None = None) -> str:
    held, _, _ = chat_with()
    with typing(held, path) as (pipe, editor):
        pipe.send_text("".join(keys))
        return editor.read("> ")


def test_enter_sends_and_alt_enter_does_not() -> None:
    assert read("one", ENTER) == "one"
    assert read("one", ALT_ENTER, "two", ENTER) == "one\ntwo"


def test_a_paste_is_one_message() -> None:
    assert read("\x1b[200~one\ntwo\r\nthree\x1b[201~", " end", ENTER) == "one\ntwo\nthree end"


def test_quotes_hold_several_lines() -> None:
    assert read('"""one', ENTER, "two", ENTER, '"""', ENTER) == "one\ntwo"
    assert read('"""one"""', ENTER) == "one"


@pytest.mark.parametrize(
    ("text", "open", "inside"),
    [('"""', True, ""), ('""""""', False, ""), ('"""a', True, "a"), ('a"""', False, 'a"""')],
)
def test_quotes(text: str, open: bool, inside: str) -> None:
    assert (is_open(text), unquoted(text)) == (open, inside)


def test_ctrl_c_clears_and_ctrl_d_ends() -> None:
    with pytest.raises(KeyboardInterrupt):
        read("one", CTRL_C)
    with pytest.raises(EOFError):
        read(CTRL_D)


def test_a_command_is_completed() -> None:
    held, _, _ = chat_with()
    with typing(held) as (keys, editor):
        keys.send_text(f"/sys{TAB}")
        later = threading.Timer(0.5, keys.send_text, (f" be brief{ENTER}",))  # it is looked for
        later.start()
        assert editor.read("> ") == "/system be brief"
        later.join()


def test_history_lasts_from_run_to_run_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "history"
    assert read("one", ALT_ENTER, "two", ENTER, path=path) == "one\ntwo"
    assert read(UP, ENTER, path=path) == "one\ntwo"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_what_is_searched_for_is_taken_by_enter_and_sent_by_another(tmp_path: Path) -> None:
    path = tmp_path / "history"
    for said_before in ("one", "two"):
        read(said_before, ENTER, path=path)
    held, _, _ = chat_with()
    with typing(held, path) as (keys, editor):
        line = editor._session.default_buffer

        def search() -> None:
            wait_for(lambda: len(line._working_lines) > 2)  # with the history, read beside it
            keys.send_text(f"{CTRL_R}on{ENTER}!{ENTER}")

        searcher = threading.Thread(target=search)
        searcher.start()
        assert editor.read("> ") == "!one"  # the cursor is where it was found
        searcher.join()


def test_history_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "history"
    entry = "\n# 2026-01-01 00:00:00\n+" + "x" * 99 + "\n"
    path.write_text(entry * (HISTORY_BYTES_MAX // len(entry) + 100))
    history = open_history(path)
    assert path.stat().st_size < 0.6 * HISTORY_BYTES_MAX
    assert next(iter(history.load_history_strings())) == "x" * 99


def test_where_no_history_can_be_kept_there_is_one_of_this_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert isinstance(open_history(tmp_path / "file" / "history"), InMemoryHistory)
    history = open_history(tmp_path / "history")
    assert isinstance(history, FileHistory)
    (tmp_path / "history").unlink()
    os.mkdir(tmp_path / "history")
    history.append_string("a full disk, or the like")
    assert history_file({"XDG_STATE_HOME": "/s"}) == Path("/s/sapwood/history")
    assert history_file({"HOME": "/h"}) == Path("/h/.local/state/sapwood/history")


def test_a_chat_on_a_terminal_to_its_end() -> None:
    held, client, around = chat_with(said("b"), said("d"))
    assert isinstance(around, Silent)
    with typing(held) as (keys, editor):
        keys.send_text(f"a{ENTER}never{CTRL_C}/fork x{ENTER}c{ENTER}{CTRL_D}")
        hold_on_terminal(held, around, editor)
    assert [asked.messages[-1].content for asked in client.asked] == ["a", "c"]  # type: ignore[union-attr]


def test_ctrl_c_between_a_line_and_its_reply_ends_no_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    meant = [KeyboardInterrupt()]

    @contextmanager
    def interrupted(_stream: object) -> Iterator[None]:
        if meant:
            raise meant.pop()
        yield

    monkeypatch.setattr(run, "keys_unseen", interrupted)
    held, client, around = chat_with(said("b"))
    with typing(held) as (keys, editor):
        keys.send_text(f"a{ENTER}c{ENTER}{CTRL_D}")
        try:
            hold_on_terminal(held, around, editor)
        except KeyboardInterrupt:  # which would end all tests
            pytest.fail("the chat is over")
    assert [asked.messages[-1].content for asked in client.asked] == ["c"]  # type: ignore[union-attr]


def test_without_prompt_toolkit_lines_are_read_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    typed = ['"""one', 'two"""', "three"]

    def typing_there(_prompt: str) -> str:
        if not typed:
            raise EOFError
        return typed.pop(0)

    monkeypatch.setattr("builtins.input", typing_there)
    held, client, around = chat_with(said("b"), said("d"))
    hold_on_terminal(held, around, PlainEditor())
    assert [asked.messages[-1].content for asked in client.asked] == [  # type: ignore[union-attr]
        "one\ntwo",
        "three",
    ]

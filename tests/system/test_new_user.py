"""Somebody who has read docs/start.md, at a shell in a terminal: what stands there is typed there.

What a chat does beyond that: test_chat_terminal.py; what `serve` shows: test_serve_terminal.py.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system.terminal import Screen, terminal
from tests.test_rooms import ROOT

pytestmark = [pytest.mark.long, pytest.mark.timeout(900), pytest.mark.outside("tmux")]
PAGE = (ROOT / "docs/start.md").read_text()


def commands(heading: str) -> list[str]:
    """What the page has there to type, without its comments."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("sapwood ")]


class Shell:
    """bash on a screen. Each command that is typed ends with its code, counted."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._typed = 0
        screen.wait("$ ")

    def begin(self, command: str) -> None:
        self._typed += 1
        self._screen.keys("-l", f"{command}; echo ended $? of {self._typed}")
        self._screen.keys("Enter")

    def ended(self, code: int = 0) -> str:
        """All that stands there once the last one did, with this code."""
        text = self._screen.wait(f" of {self._typed}\n", 2)  # typed, and said
        assert f"ended {code} of {self._typed}\n" in text, text
        return text.rpartition(f"of {self._typed - 1}\n")[2]

    def run(self, command: str, code: int = 0) -> str:
        self.begin(command)
        return self.ended(code)

    def say(self, *lines: str) -> None:
        """To what runs there: the lines one after another."""
        for line in lines:
            self._screen.keys("-l", line)
            self._screen.keys("Enter")


@contextmanager
def shell(folder: Path) -> Iterator[tuple[Screen, Shell]]:
    kept = {name: os.environ[name] for name in ("LD_PRELOAD",) if name in os.environ}
    environ = {**kept, "HOME": str(folder), "LANG": "C.UTF-8", "XDG_RUNTIME_DIR": str(folder)}
    environ["SAPWOOD_METRICS"] = "127.0.0.1:0"  # another daemon may have the usual port
    environ["SAPWOOD_LISTEN"] = f"unix:{folder}/sapwood.sock"
    # Behind what the terminal's own shell has read.
    path = shlex.quote(f"{Path(sys.executable).parent}:/usr/bin:/bin")
    bash = f"cd {folder}; env PATH={path} PS1='$ ' HISTFILE=/dev/null bash --norc --noprofile -i"
    with terminal(folder, bash, environ, width=160) as screen:
        yield screen, Shell(screen)


def test_the_five_minutes(folder: Path) -> None:
    (serve, ask, chat, status, stop) = commands("Try it without a download")
    with shell(folder) as (first, daemon), shell(folder) as (second, user):
        assert "sapwood serve" in user.run(ask, code=1), "what would help"
        daemon.begin(serve)
        first.wait("/sapwood.sock\n")
        assert "river" in user.run(ask).partition("\n")[2]
        talk(second, user, chat, folder)
        assert "sapwood-demo" in user.run(status)
        look_around(second, user)
        for command in commands("What everybody asks with")[:-1]:
            assert "tokens" in user.run(command)
        user.say(commands("What everybody asks with")[-1])
        second.wait("prompt tokens/s")
        second.keys("C-c")
        assert "back\n" in user.run("echo back")
        assert "stopped, process" in user.run(stop)
        daemon.ended()


def talk(screen: Screen, user: Shell, chat: str, folder: Path) -> None:
    """An evening with all that a chat has for somebody new."""
    before = screen.text.count("tokens/s")
    user.begin(chat)
    user.say("What is a river?")
    screen.wait("tokens/s", before + 1)
    user.say('"""', "First this.", "Then that.", '"""')
    screen.wait("tokens/s", before + 2)
    user.say("/set temperature 0", f"/save {folder}/kept.json", "/fork other", "What is a lake?")
    screen.wait("tokens/s", before + 3)
    user.say("/retry")
    screen.wait("tokens/s", before + 4)
    user.say("/fork")
    screen.wait("* other  6 messages")
    user.say("/clear", f"/load {folder}/kept.json")
    screen.wait("loaded 4 messages")
    user.say("/set max_tokens 3000", "/set temperature 3", "Go on for long.")
    screen.wait("Go on for long.\n")
    screen.keys("C-c")
    screen.wait("stopped")
    user.say("/show messages")
    screen.wait("Then that.\n", 2)
    user.say("/bye")
    user.ended()


def look_around(screen: Screen, user: Shell) -> None:
    """Everything that reads, and nothing that is missing."""
    assert "no Gemma 4" in user.run("sapwood list") and "context" in user.run("sapwood show")
    assert "\nok\n" in user.run("sapwood check")
    shown = user.run("sapwood config show --memory 3G > s.toml && cat s.toml")
    assert tomllib.loads(shown[shown.index("#") : shown.rindex("ended")])["memory"] == "3G"
    assert "s.toml: ok" in user.run("sapwood config check s.toml")
    wrong = user.run("sapwood sevre", code=2)
    assert "did you mean serve?" in wrong
    user.run("source <(sapwood completion bash)")
    screen.keys("-l", "sapwood gen")
    screen.keys("Tab")
    screen.wait("$ sapwood generate ")
    screen.keys("C-c")
    assert "[Install]" in user.run("sapwood install-service --print --model x") or (
        sys.platform == "darwin"
    )

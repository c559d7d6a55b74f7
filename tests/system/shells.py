"""A shell in a real terminal, as somebody sits before it who has read docs/start.md."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.system.terminal import Screen, terminal
from tests.test_rooms import ROOT

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
        self.screen = screen
        self._typed = 0
        screen.wait("$ ")

    def begin(self, command: str, until: str = "") -> None:
        """until: what it shows, to be waited for."""
        self._typed += 1
        times = (self.screen.text + command).count(until) + 1
        self.say(f"{command}; echo ended $? of {self._typed}")
        if until:
            self.screen.wait(until, times)

    def ended(self, code: int = 0) -> str:
        """All that stands there once the last one did, with this code."""
        text = self.screen.wait(f" of {self._typed}\n", 2)  # typed, and said
        assert f"ended {code} of {self._typed}\n" in text, text
        return text.rpartition(f"of {self._typed - 1}\n")[2]

    def run(self, command: str, code: int = 0) -> str:
        self.begin(command)
        return self.ended(code)

    def interrupt(self, code: int = 130) -> str:
        """Ctrl-C for what runs there, and its end."""
        self.screen.keys("C-c")
        return self.ended(code)

    def say(self, *lines: str) -> None:
        """To what runs there: the lines one after another."""
        for line in lines:
            self.screen.keys("-l", line)
            self.screen.keys("Enter")

    def completed(self, typed: str, shown: str) -> None:
        """Tab behind a line that is not sent, until that is shown."""
        self.screen.keys("-l", typed)
        self.screen.keys("Tab")
        self.screen.wait(shown)

    def clear(self) -> None:
        """Ctrl-C for a line of a chat; until the next can be typed."""
        prompts = self.screen.text.count("\n>")
        self.screen.keys("C-c")
        self.screen.wait("\n>", prompts + 1)

    def answered(self, line: str, words: str) -> str:
        """A line to what runs there; what stands behind it once the words do, once more."""
        before = self.screen.text
        self.say(line)
        text = self.screen.wait(words, before.count(words) + line.count(words) + 1)
        return text.split(line, before.count(line) + 1)[-1] if line else text


def retried(user: Shell) -> str:
    """In a chat whose daemon is back: asked again until the client has found it."""
    while "no daemon answers" in (told := user.answered("/retry", "\n>")):
        pass
    return told


@contextmanager
def shell(folder: Path, more: Mapping[str, str] = {}, width: int = 160) -> Iterator[Shell]:
    """At home in the folder, where daemons put their socket too. more: of its environment."""
    kept = {name: os.environ[name] for name in ("LD_PRELOAD",) if name in os.environ}
    environ = {**kept, "HOME": str(folder), "LANG": "C.UTF-8", "XDG_RUNTIME_DIR": str(folder)}
    environ["SAPWOOD_METRICS"] = "127.0.0.1:0"  # another daemon may have the usual port
    environ["SAPWOOD_LISTEN"] = f"unix:{folder}/sapwood.sock"
    # Behind what the terminal's own shell has read.
    path = shlex.quote(f"{Path(sys.executable).parent}:/usr/bin:/bin")
    bash = f"cd {folder}; env PATH={path} PS1='$ ' HISTFILE=/dev/null bash --norc --noprofile -i"
    with terminal(folder, bash, {**environ, **more}, width=width) as screen:
        yield Shell(screen)

"""A real terminal: a program in tmux, what is typed there, and what stands on the screen."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

WAIT_S_MAX = 90.0
# pytest's own terminal is another one.
_ENVIRON = {name: it for name, it in os.environ.items() if name not in ("COLUMNS", "LINES")}


class Screen:
    """Of one program. keys are tmux's: text, or names such as Enter and C-c."""

    def __init__(self, server: Path) -> None:
        self._tmux = ("tmux", "-S", str(server), "-f", "/dev/null")

    def run(self, *words: str) -> str:
        """One command of tmux."""
        done = subprocess.run(
            [*self._tmux, *words], env=_ENVIRON, capture_output=True, text=True, check=True
        )
        return done.stdout

    def keys(self, *keys: str) -> None:
        self.run("send-keys", *keys)

    def paste(self, text: str) -> None:
        """Bracketed, as terminals do."""
        self.run("set-buffer", text)
        self.run("paste-buffer", "-p")

    def record(self, path: Path) -> None:
        """From here on, all that is written, also what is drawn over."""
        self.run("pipe-pane", f"cat >> {path}")

    @property
    def text(self) -> str:
        """All that was written and not drawn over, what scrolled away included."""
        return self.run("capture-pane", "-p", "-J", "-S", "-")

    def wait(self, words: str, times: int = 1) -> str:
        """Until the words stand there so many times; the text."""
        deadline = time.monotonic() + WAIT_S_MAX
        while (text := self.text).count(words) < times:
            assert time.monotonic() < deadline, f"no {words!r} in:\n{text}"
            time.sleep(0.05)
        return text


@contextmanager
def terminal(
    folder: Path, command: str, environ: Mapping[str, str], width: int = 80
) -> Iterator[Screen]:
    """`command` is the shell's, in a terminal of its own that stays when it is over."""
    screen = Screen(folder / f"tmux{time.monotonic_ns()}")  # one that ends holds its socket a while
    settings = [word for name, value in environ.items() for word in ("-e", f"{name}={value}")]
    size = ("-x", str(width), "-y", "24")
    screen.run("new-session", "-d", *size, *settings, f"{command}; echo code $?; cat")
    try:
        yield screen
    finally:
        screen.run("kill-server")

"""`sapwood chat` as somebody uses it: in a terminal, with a daemon on the bundled pair."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.daemon.process.processes import appeared
from tests.system.terminal import Screen, terminal
from tests.test_rooms import ROOT

pytestmark = [pytest.mark.long, pytest.mark.timeout(600), pytest.mark.outside("tmux")]
SAPWOOD = f"{sys.executable} -m sapwood"


@contextmanager
def daemon(folder: Path) -> Iterator[None]:
    ready = folder / "ready.json"
    flags = ["--listen", f"unix:{folder}/s", "--metrics", "127.0.0.1:0", "--ready-file", str(ready)]
    process = subprocess.Popen(
        [sys.executable, "-m", "sapwood", "serve", *flags],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        appeared(ready, process)
        yield
    finally:
        process.terminate()
        process.communicate(timeout=60)


def chatting(folder: Path) -> dict[str, str]:
    """The environment of a chat with the folder's daemon, with a home of its own."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_PRELOAD") if name in os.environ}
    return {**kept, "HOME": str(folder), "SAPWOOD_ADDRESS": f"unix:{folder}/s", "LANG": "C.UTF-8"}


def say(screen: Screen, text: str) -> None:
    screen.keys("-l", text)
    screen.keys("Enter")


def test_an_evening_with_chat(folder: Path) -> None:
    environ = chatting(folder) | {"PYTHONPATH": str(ROOT)}
    with daemon(folder), terminal(folder, f"{SAPWOOD} chat", environ, width=50) as screen:
        screen.wait("\n>")
        say(screen, "What is a river?")
        replied = screen.wait("tokens/s")
        reply = replied.partition("What is a river?\n")[2].partition("tokens/s")[0]
        assert "drafts" in replied and "river" in reply
        assert max(map(len, reply.splitlines())) <= 50
        # A setting that is refused, and what was asked then.
        say(screen, "/set temperature -1")
        say(screen, "And the sea?")
        screen.wait("BAD_SAMPLING")
        say(screen, "/set temperature")
        say(screen, "/retry")
        screen.wait("tokens/s", 2)
        # Several lines at once are one message.
        screen.paste("First this.\nThen that.\nNow you.")
        screen.keys("Enter")
        screen.wait("tokens/s", 3)
        # Ctrl-C clears a line, and stops a reply.
        screen.keys("-l", "nobody reads this")
        screen.keys("C-c")
        say(screen, "/set temperature 3")
        say(screen, "/set max_tokens 3000")
        say(screen, "/set min_tokens 3000")
        screen.wait("min_tokens = 3000")  # what is typed ahead stands there before it is read
        say(screen, "Go on for long.")
        while not re.search(r"Go on for long\.\n.*\w", screen.text):
            pass
        screen.keys("C-c")
        screen.wait("stopped")
        say(screen, "/set temperature")
        say(screen, "/set min_tokens")
        say(screen, "/set max_tokens 8")
        say(screen, "Tell me about the sea.")
        screen.wait("cut after 8 tokens")
        say(screen, f"/save {folder}/kept.json")
        screen.wait("saved")
        screen.keys("C-d")
        screen.wait("code 0")
    saved = [m["content"] for m in json.loads((folder / "kept.json").read_text())["messages"]]
    assert "First this.\nThen that.\nNow you." in saved
    assert not any("nobody" in text for text in saved)
    assert not re.search(r"\S\n\S", saved[1])  # what was wrapped was wrapped on the screen alone


def test_a_daemon_that_goes_takes_no_conversation_along(folder: Path) -> None:
    environ = chatting(folder) | {"PYTHONPATH": str(ROOT)}
    with daemon(folder):
        screens = terminal(folder, f"{SAPWOOD} chat", environ)
        screen = screens.__enter__()
        screen.wait("\n>")
        say(screen, "What is a river?")
        screen.wait("tokens/s")
    try:
        say(screen, "What is a lake?")
        screen.wait("no daemon answers")
        with daemon(folder):
            while "tokens/s" not in screen.text.partition("no daemon answers")[2]:
                prompts = screen.text.count("\n>")
                say(screen, "/retry")  # until the client has found it
                screen.wait("\n>", prompts + 1)
            say(screen, "/show")
            screen.wait("4 messages")
            say(screen, "/bye")
            screen.wait("code 0")
    finally:
        screens.__exit__(None, None, None)


def test_history_and_completion_in_a_terminal(folder: Path) -> None:
    environ = chatting(folder) | {"PYTHONPATH": str(ROOT)}
    with daemon(folder):
        with terminal(folder, f"{SAPWOOD} chat", environ) as screen:
            screen.wait("\n>")
            say(screen, "What is a river?")
            screen.wait("tokens/s")
            screen.keys("C-d")
            screen.wait("code 0")
        with terminal(folder, f"{SAPWOOD} chat", environ) as screen:
            screen.wait("\n>")
            screen.keys("Up")
            screen.wait("> What is a river?")
            screen.keys("C-c")
            screen.keys("-l", "/sys")
            screen.keys("Tab")
            screen.wait("/system")
            screen.keys("-l", " Be brief.")
            screen.keys("Enter")
            screen.wait("the system message is set")

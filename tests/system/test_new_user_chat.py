"""All that docs/chat.md promises of `sapwood chat`, typed in a terminal.

The model says what it is asked to say (tests/daemon/gateway/serve_scripted.py): so it thinks, calls
tools and takes its time where somebody new shall see it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from sapwood import Client, Delta, Message
from sapwood.daemon.demo.scrape import scrape, total
from tests.daemon.gateway.serve_scripted import CHECKPOINT
from tests.daemon.process.processes import appeared, wait_for
from tests.model.reference import FIXTURES
from tests.system.shells import Shell, retried, shell
from tests.test_rooms import ROOT

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800), pytest.mark.outside("tmux")]

REPLIED = "cached"  # how what is said of a reply ends, however it is wrapped
COMMANDS = (
    *("help", "system", "set", "show", "think", "tools"),
    *("save", "load", "clear", "retry", "fork", "bye"),
)
# One reply at a time, and one that waits.
SETTINGS = "[limits]\nslots_max = 1\nqueued_max = 1\nqueue_s_max = 1000.0\n"
TOOLS = [{"name": "get_weather", "description": "of a place", "parameters": {"type": "object"}}]


@contextmanager
def scripted(folder: Path) -> Iterator[Path]:
    """A daemon where clients of the folder look for one; its log."""
    log, ready = folder / "log", folder / "ready.json"
    command = [sys.executable, "-m", "tests.daemon.gateway.serve_scripted", str(folder)]
    with log.open("a") as stderr:
        process = subprocess.Popen(
            [*command, f"unix:{folder}/sapwood.sock", str(folder / "model")],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, text=True,
        )  # fmt: skip
    try:
        appeared(ready, process)
        yield log
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


@contextmanager
def chatting(folder: Path, width: int = 100) -> Iterator[Shell]:
    with shell(folder, width=width) as user:
        user.begin("sapwood chat", until="\n>")
        yield user
        user.say("/bye")
        user.ended()


@pytest.fixture
def home(folder: Path) -> Path:
    (folder / "c.toml").write_text(SETTINGS)
    (folder / "tools.json").write_text(json.dumps(TOOLS))
    shutil.copytree(CHECKPOINT, folder / "model")
    shutil.copy(FIXTURES / "chat/template.jinja", folder / "model/chat_template.jinja")
    return folder


def test_every_command_and_what_is_wrong_with_some(home: Path) -> None:
    with scripted(home), chatting(home) as user:
        helped = user.answered("/help", "stops a reply")
        assert all(f"\n/{name}" in helped for name in COMMANDS)
        settings_and_system(user)
        thoughts(user)
        calls(user)
        branches_and_files(user, home)
        endings(user)
        user.answered("/hlep", "did you mean /help?")


def settings_and_system(user: Shell) -> None:
    assert "Hello there." in user.answered("say hello", REPLIED)
    user.answered("/set temprature 1", "did you mean temperature?")
    user.answered("/set seed soon", "is no 64-bit number")
    user.answered("/set seed 7", "seed = 7")
    assert "seed = 7" in user.answered("/set", "not set: ")
    user.answered("/set seed", "seed: as the model or the daemon has it")
    # What only the daemon knows to be wrong costs nothing but this line.
    user.answered("/set temperature -1", "temperature = -1.0")
    user.answered("say count", "BAD_SAMPLING")
    user.answered("/set temperature", "temperature: as the model")
    assert "one two three four five" in user.answered("/retry", REPLIED)
    user.answered("/system Be brief.", "the system message is set")
    user.answered("/show system", "\nBe brief.\n")
    assert "Hello there." in user.answered("say hello", REPLIED)
    user.answered("/system", "there is no system message")
    user.answered("/show settings", "branch main, 6 messages, think auto")
    user.answered("/show messages", "assistant: one two three four five")
    user.answered("/show tools", "there are no tools")
    user.answered("/show model", "drafter fake-drafter, context 4096 tokens")
    user.answered("/show everything", "/show settings | system | tools")


def thoughts(user: Shell) -> None:
    user.answered("/show thinking", "nothing was thought yet")
    user.answered("/think perhaps", "/think on | off | auto")
    user.answered("/think on", "\nthink on\n")
    thought = user.answered("say think", REPLIED)
    assert "▸ thought for" in thought and "So it is." in thought and "hmm" not in thought
    user.answered("/show thinking", "hmm, well")
    user.answered("/think auto", "\nthink auto\n")


def calls(user: Shell) -> None:
    user.answered("/tools nowhere.json", "nowhere.json: No such file")
    user.answered("/tools tools.json", "get_weather  of a place")
    user.answered("say call", '→ get_weather(city="Paris", days=2)')
    user.screen.wait("get_weather returns>")
    user.answered("rain", REPLIED)
    user.answered("say twice", '→ get_weather(city="Rome", days=2)')
    user.say("sun")
    user.answered("snow", REPLIED)
    user.answered("/tools off", "there are no tools")


def branches_and_files(user: Shell, home: Path) -> None:
    user.answered("/clear", "a new conversation; what is set stays")
    user.answered("/retry", "there is nothing to ask again")
    user.answered("say hello", REPLIED)
    user.answered("/save", "/save FILE")
    user.answered("/save kept.json", "saved 2 messages")
    user.answered("/fork other", "now on other, 2 messages")
    user.screen.wait("\nother>")
    user.answered("say count", REPLIED)
    user.answered("/fork", "* other  4 messages")
    user.answered("/fork main", "back on main, 2 messages")
    user.answered("/load nowhere.json", "nowhere.json: No such file")
    user.answered("/load tools.json", "is no conversation that this version saved")
    user.answered("/clear", "what is set stays")
    user.answered("/load kept.json", "loaded 2 messages")
    saved = json.loads((home / "kept.json").read_text())["messages"]
    assert [message["content"] for message in saved] == ["say hello", "Hello there."]
    assert (home / "kept.json").stat().st_mode & 0o777 == 0o600


def endings(user: Shell) -> None:
    user.answered("/set max_tokens 3", "max_tokens = 3")
    user.answered("say count", "cut after 3 tokens (/set max_tokens N)")
    user.answered("/set max_tokens", "max_tokens: as the model")
    user.answered("/set stop three", "stop = ['three']")
    user.answered("say count", "ended by the stop string 'three'")
    user.answered("/set stop", "stop: as the model")
    told = user.answered("say count", REPLIED).splitlines()[-1]
    assert "tokens/s" in user.screen.text and "drafts accepted" in user.screen.text, told


def test_what_is_typed_pasted_completed_and_found_again(home: Path) -> None:
    with scripted(home):
        with chatting(home) as user:
            texts(user)
            completions(user)
            user.answered("/save kept.json", "saved")
            user.screen.keys("C-d")
            user.ended()
            user.begin("sapwood chat", until="\n>")
            user.screen.keys("Up")
            user.screen.wait("> /save kept.json", 2)
            user.clear()
            user.screen.keys("C-r")
            user.screen.keys("-l", "Now you")
            user.screen.wait("> First this.", 2)
            user.screen.keys("Enter")  # takes it, and sends nothing
            user.screen.keys("-l", " Once more.")
            user.screen.wait("Once more.")
            user.clear()
        said = [
            each["content"] for each in json.loads((home / "kept.json").read_text())["messages"]
        ]
        assert said[0::2] == ["say hello", "First this.\nThen that.\nNow you.", "a\nb", "c\nd"]
        pipes(home)


def texts(user: Shell) -> None:
    """What is edited, cleared, pasted, quoted; lines behind a key of their own."""
    user.screen.keys("-l", "nobody reads this")
    user.clear()
    user.screen.keys("-l", "say helo")
    user.screen.keys("Left")
    assert "Hello there." in user.answered("l", REPLIED)
    user.screen.paste("First this.\nThen that.\nNow you.")
    user.screen.wait("Now you.")
    user.answered("", REPLIED)
    user.say('"""', "a", "b")
    user.answered('"""', REPLIED)
    user.screen.keys("-l", "c")
    user.screen.keys("M-Enter")
    user.answered("d", REPLIED)


def completions(user: Shell) -> None:
    for typed, whole in {
        "/sys": "/system",
        "/set temp": "/set temperature",
        "/think of": "/think off",
        "/show mess": "/show messages",
        "/tools too": "/tools tools.json",
    }.items():
        user.completed(typed, f"> {whole}")
        user.clear()


def pipes(home: Path) -> None:
    with shell(home) as user:
        user.run(r"printf 'say hello\nsay count\n' | sapwood chat > out")
        assert (home / "out").read_text() == "Hello there.\none two three four five\n"
        wrong = user.run(r"printf '/nope\nsay hello\n' | sapwood chat > out", code=1)
        assert "there is no command /nope" in wrong
        assert (home / "out").read_text() == "Hello there.\n"
        user.run("sapwood generate --tools tools.json say call > out")
        call = json.loads((home / "out").read_text())
        assert call == {"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}


def test_nothing_ends_a_chat_or_loses_what_was_said(home: Path) -> None:
    with shell(home, width=50) as user:
        with scripted(home):
            user.begin("sapwood chat", until="\n>")
            assert "Hello there." in user.answered("say hello", REPLIED)
        user.answered("say count", "no daemon answers")
        user.answered("say think", "no daemon answers")
        with scripted(home) as log:
            assert "So it is." in retried(user)
            stopped(user, home)
            busy(user, home, log)
            full(user)
            user.say("/bye")
            user.ended()


def stopped(user: Shell, home: Path) -> None:
    """What has come is drawn, and stays: Markdown, and words that are whole."""
    (home / "held").touch()
    user.answered("/set max_tokens 4000", "max_tokens = 4000")
    seen = user.answered("say pause", "They flow: la la").rpartition("Rivers")[2]
    assert "• wide" in seen and "**" not in seen and "tokens" not in seen
    user.screen.keys("C-c")
    user.screen.wait("\nstopped\n")
    user.answered("/show messages", "assistant: # Rivers")
    user.screen.keys("-l", "nobody reads this")
    user.clear()
    (home / "held").unlink()
    user.answered("/set max_tokens 200", "max_tokens = 200")
    long = user.answered("say forever", "cut after 200 tokens").splitlines()
    flow = [line.strip() for line in long if line.startswith("la ")]
    assert len(flow) > 3 and all(set(line.split()) == {"la"} for line in flow[:-1])
    user.answered("/set max_tokens", "max_tokens: as the model")
    user.answered("/show", "branch main, 8 messages")


def busy(user: Shell, home: Path, log: Path) -> None:
    """Two are before us: no more may wait. Ctrl-C ends our own patience too."""
    (home / "held").touch()
    with Client(f"unix:{home}/sapwood.sock") as client, ThreadPoolExecutor(1) as pool:
        first = client.generate([Message("user", "say pause")], max_tokens=4000)
        assert any(isinstance(event, Delta) for event in first)
        second = pool.submit(client.generate([Message("user", "say hello")]).text)
        metrics = json.loads((home / "ready.json").read_text())["metrics"]
        wait_for(lambda: total(scrape(metrics), "requests_waiting") == 1)
        user.say("say count")
        wait_for(lambda: "QUEUE_FULL" in log.read_text())
        user.screen.keys("C-c")
        user.screen.wait("stopped; /retry asks again")
        first.cancel()
        assert second.result() == "Hello there."
    assert "one two three four five" in user.answered("/retry", REPLIED)
    (home / "held").unlink()


def full(user: Shell) -> None:
    """A context that is full ends neither."""
    user.answered("/set max_tokens 4000", "max_tokens = 4000")
    user.answered("say forever", "the context of 4096 tokens is full")
    user.answered("say hello", "/retry asks again")
    user.answered("/clear", "a new conversation")
    user.answered("/set max_tokens", "max_tokens: as the model")
    assert "Hello there." in user.answered("say hello", REPLIED)

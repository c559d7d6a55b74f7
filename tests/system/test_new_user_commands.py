"""All that docs/commands.md promises of the command line, typed in a terminal."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from sapwood.model.checkpoint.locate import locate
from tests.system.over_http import needs_gateway
from tests.system.shells import Shell, shell

pytestmark = [
    pytest.mark.long, pytest.mark.timeout(1800), pytest.mark.outside("tmux"), needs_gateway
]  # fmt: skip

SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["water", "stone"]}, "km": {"enum": [1, 20, 300]}},
    "required": ["kind", "km"],
    "additionalProperties": False,
}
READING = {
    "status": "address", "tree": "nodes", "show": "family", "check": "self_check",
    "config show": "memory", "top --once": "tokens_per_s", "list": "", "pins": "", "sessions": "",
}  # fmt: skip


def test_one_daemon_and_every_command(folder: Path) -> None:
    with shell(folder, width=120) as daemon, shell(folder) as user:
        without_a_daemon(user)
        started(daemon, folder)
        asking(user, folder)
        reading(user, folder)
        watching(user)
        assert "stopped, process" in user.run("sapwood stop")
        assert "no daemon of ours runs here" in user.run("sapwood stop", code=1)
        daemon.ended()


def without_a_daemon(user: Shell) -> None:
    for command in ("generate hi", "chat", "status", "tree", "pins", "sessions", "top"):
        assert "sapwood serve" in user.run(f"sapwood {command}", code=1), command


def started(daemon: Shell, folder: Path) -> None:
    """A bar that goes; then what one asks first. Standard output has one line."""
    daemon.screen.record(folder / "seen")
    daemon.begin("sapwood serve --http 127.0.0.1:0 > ready")
    shown = daemon.screen.wait("(OpenAI's and Anthropic's API)\n")
    assert "warming up" in (folder / "seen").read_text() and "warming up" not in shown
    for label in ("model", "drafter", "memory", "context", "device", "at"):
        assert re.search(rf"^{label}  +\S", shown, re.MULTILINE), label
    assert "--memory" in shown and "(metrics)" in shown
    line = (folder / "ready").read_text()
    assert re.fullmatch(r"sapwood ready: grpc unix:\S+ metrics http:\S+ http http:\S+\n", line)


def asking(user: Shell, folder: Path) -> None:
    """Words, files, schemas, tools, sessions; Ctrl-C."""
    assert "river" in user.run("sapwood generate What --temperature 0 is a river?").lower()
    (folder / "question.txt").write_text("What is a lake?")
    assert "water" in user.run("sapwood generate --file question.txt")
    assert "water" in user.run("sapwood generate < question.txt")
    user.run("sapwood generate --json What is a river? > events")
    events = [json.loads(line) for line in (folder / "events").read_text().splitlines()]
    assert [events[0]["event"], events[-1]["event"]] == ["prefill", "finish"]
    assert "river" in "".join(event.get("text", "") for event in events)
    (folder / "schema.json").write_text(json.dumps(SCHEMA))
    user.run("sapwood generate --schema schema.json A river. > reply")
    assert set(json.loads((folder / "reply").read_text())) == {"kind", "km"}
    assert "cut after 3 tokens" in user.run("sapwood generate --max-tokens 3 hi > reply")
    (folder / "tools.json").write_text('[{"name": "now", "description": "", "parameters": {}}]')
    refused = user.run("sapwood generate --tools tools.json What time is it?", code=1)
    assert "the model's chat template has no place for tools" in refused
    assert "No such file" in user.run("sapwood generate --schema nowhere.json hi", code=2)
    for question in ("What is a river?", "What is a lake?"):
        user.run(f"sapwood generate --session diary '{question}'")
    assert "diary, " in user.run("sapwood sessions")
    long = "sapwood generate --json --min-tokens 3000 --max-tokens 3000 Go on."
    user.begin(long, until='"event": "delta"')
    user.interrupt()


def reading(user: Shell, folder: Path) -> None:
    """Everything that reads has JSON, and something for people."""
    for command, key in READING.items():
        user.run(f"sapwood {command} --json > read")
        told: Any = json.loads((folder / "read").read_text())
        assert key in told if key else isinstance(told, list), command
        assert len(user.run(f"sapwood {command}").splitlines()) > 2, command


def watching(user: Shell) -> None:
    """Live, until somebody has seen enough."""
    user.begin("sapwood top --interval 0.2", until="■ weights")
    user.interrupt(code=0)
    user.begin("sapwood tree --watch 0.2", until=" nodes · ")
    user.interrupt()


def test_what_needs_no_daemon(folder: Path) -> None:
    with shell(folder) as user:
        bundle(user)
        meant(user)
        settings(user, folder)
        completion(user)
        if sys.platform != "darwin":
            assert "[Install]" in user.run("sapwood install-service --print --model x")


def bundle(user: Shell) -> None:
    target, drafter = locate(None, None)
    assert drafter is not None
    assert "no Gemma 4" in user.run("sapwood list")
    made = user.run(f"sapwood convert {target.path} mine --draft {drafter.path} --quantize 8bit")
    assert "done ━━" in made and "sapwood check " in made
    assert "\nok\n" in user.run("sapwood check mine")
    assert "8-bit" in user.run("sapwood show mine")
    assert "sapwood: " in user.run(f"sapwood convert {target.path} mine", code=1)
    user.run("echo >> mine/target/config.json")
    assert "the bundle is not complete" in user.run("sapwood check mine", code=1)


def meant(user: Shell) -> None:
    """One line says what is wrong, and what was meant."""
    for wrong, near in {
        "sevre": "serve?",
        "generate --sesion x hi": "--session?",
        "serve --draft-deph 2": "--draft-depth?",
        "config chekc x": "check",
    }.items():
        said = user.run(f"sapwood {wrong}", code=2)
        assert near in said and said.count("sapwood: ") == 1, said
    assert "did you mean" in user.run("sapwood serve --pgae", code=2)
    assert "usage: sapwood" in user.run("sapwood --help") and "sapwood " in user.run(
        "sapwood --version"
    )


def settings(user: Shell, folder: Path) -> None:
    """One name in flags, environment and file; each says where it was written."""
    (folder / "s.toml").write_text('draft_depth = 2\nitl_target = 2.0\nmemory = "3G"\n')
    user.run(
        "SAPWOOD_DRAFT_DEPTH=3 SAPWOOD_MEMORY=4G "
        "sapwood config show --config s.toml --memory 5G --json > shown"
    )
    shown = json.loads((folder / "shown").read_text())
    found = {name: shown[name] for name in ("memory", "draft_depth", "itl_target")}
    assert [str(each["value"]) for each in found.values()] == ["5G", "3", "2.0"], found
    assert [each["from"] for each in found.values()] == [
        "--memory",
        "SAPWOOD_DRAFT_DEPTH",
        "s.toml: itl_target",
    ]
    user.run("sapwood config show --memory 3G > t.toml")
    assert tomllib.loads((folder / "t.toml").read_text())["memory"] == "3G"
    assert "t.toml: ok" in user.run("sapwood config check t.toml")
    for text, near in {"memroy = 1": "memory?", "[limits]\nslots_maxx = 1": "slots_max?"}.items():
        (folder / "wrong.toml").write_text(text)
        for command in ("config check", "serve --config"):
            said = user.run(f"sapwood {command} wrong.toml", code=2)
            assert "wrong.toml: " in said and near in said


def completion(user: Shell) -> None:
    """In bash, which is here; for others what they read is written."""
    user.run("source <(sapwood completion bash)")
    for typed, whole in {
        "sapwood gen": "sapwood generate",
        "sapwood generate --sch": "sapwood generate --schema",
        "sapwood completion fi": "sapwood completion fish",
    }.items():
        user.completed(typed, f"$ {whole}")
        user.screen.keys("C-c")
    assert "#compdef sapwood" in user.run("sapwood completion zsh | head -n 1")
    assert "session" in user.run("sapwood completion fish | grep -m 1 -w session")

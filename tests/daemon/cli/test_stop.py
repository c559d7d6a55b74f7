"""`sapwood stop`: the daemon that holds the ready file ends, and nobody else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sapwood.daemon.cli.main import main
from sapwood.daemon.process.ready import ReadyFile, is_held, ready_path
from sapwood.daemon.settings.addresses import TcpAddress
from tests.daemon.process.processes import serving

ADDRESS = TcpAddress("127.0.0.1", 50551)


def test_a_daemon_is_stopped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(folder, "0") as (process, ready):
        flags = ["--ready-file", str(folder / "ready.json")]
        assert main(["stop", *flags, "--connect", "127.0.0.1:1"]) == 1
        assert "not at 127.0.0.1:1" in capsys.readouterr().err
        assert process.poll() is None
        assert main(["stop", *flags, "--connect", ready["grpc"][1]]) == 0
        assert capsys.readouterr().out == f"stopped, process {process.pid}\n"
        assert process.wait(30) == 0


def test_a_file_that_was_left_behind_stops_nobody(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its process id may be anybody's by now."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as innocent:
        path = folder / "sapwood.json"
        path.write_text(json.dumps({"grpc": [str(ADDRESS)], "pid": innocent.pid}))
        assert main(["stop", "--ready-file", str(path)]) == 1
        assert "runs no more" in capsys.readouterr().err
        assert innocent.poll() is None
        innocent.communicate()


def test_nobody_to_stop_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    assert main(["stop"]) == 1
    missing = f"no daemon of ours runs here: there is no {folder}/sapwood.json"
    assert capsys.readouterr().err == f"sapwood: {missing}\n"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pid": true}', '{"pid": 1}', '{"pid": -5}'])
def test_what_is_no_ready_file_stops_nobody(
    text: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a signal was sent")

    monkeypatch.setattr(os, "kill", refuse)
    monkeypatch.setattr("sapwood.daemon.cli.daemon_commands.is_held", lambda _: True)
    (folder / "sapwood.json").write_text(text)
    assert main(["stop", "--ready-file", str(folder / "sapwood.json")]) == 1
    assert "sapwood.json" in capsys.readouterr().err


def test_the_default_place_is_taken_where_it_is_free(folder: Path) -> None:
    environ = {"HOME": str(folder)}
    path = folder / ".sapwood" / "sapwood.json"
    assert ready_path(Path("/named"), environ) == Path("/named")
    assert ready_path(None, environ) == path
    assert path.parent.stat().st_mode & 0o777 == 0o700
    file = ReadyFile(path)
    file.write([ADDRESS], ADDRESS)
    assert ready_path(None, environ) is None  # a daemon that runs has it
    with path.open("rb") as held:
        assert is_held(held.fileno())
        os.close(os.dup(held.fileno()))
        file.remove()
        assert not is_held(held.fileno())
    path.write_text("left behind")
    assert ready_path(None, environ) == path
    path.unlink()
    path.mkdir()
    assert ready_path(None, environ) is None

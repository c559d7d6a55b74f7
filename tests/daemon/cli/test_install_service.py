"""`sapwood install-service`: what it writes starts what `serve` would, and overwrites nothing."""

from __future__ import annotations

import os
import plistlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sapwood.daemon.cli.main import main
from sapwood.daemon.cli.service_files import SERVICE
from sapwood.daemon.settings.config import load_config
from sapwood.scheduler.limits import Limits
from tests.outside import program
from tests.test_rooms import ROOT


@pytest.fixture(autouse=True)
def home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Somebody's, with both managers of services on PATH."""
    for name in ("systemctl", "launchctl"):
        (folder / name).touch(0o755)
    for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "LD_PRELOAD", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.chdir(folder)
    return folder


def printed(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert main(["install-service", "--print", *flags]) == 0
    return capsys.readouterr().out


def unit(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line[1:])


def command(monkeypatch: pytest.MonkeyPatch, text: str) -> list[str]:
    """Of a unit, as systemd starts it."""
    line = unit(text)["ExecStart"]
    return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(line)]


def flags_of(started: list[str]) -> dict[str, Any]:
    """As the command line's parser would have them, of flags with a value."""
    at = started.index("serve") + 1
    words = [word for word in started[at:] if word != "--no-reflection"]
    found: dict[str, Any] = {
        flag[2:].replace("-", "_"): value
        for flag, value in zip(words[::2], words[1::2], strict=True)
    }
    found |= {"listen": [found["listen"]], "reflection": "--no-reflection" not in started}
    return found


def test_the_service_serves_what_serve_would(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever folder it starts in, and with none of this environment."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("SAPWOOD_MEMORY", "3G")
    monkeypatch.setenv("HF_HOME", "/mnt/50% $x")
    (home / "c.toml").write_text("[limits]\nslots_max = 3\ndrain_s_max = 41.5\n")
    (home / "a model").mkdir()
    given = ["--config", "c.toml", "--model", "a model", "--draft", "org/a", "--no-reflection"]
    given += ["--listen", "unix:s,principal=bob", "--tokens", 'o"d% $d']
    text = printed(capsys, *given)
    meant = {"config": "c.toml", "model": str(home / "a model"), "draft": "org/a"}
    meant |= {"tokens": 'o"d% $d', "memory": "3G"}
    wanted = load_config({**meant, "listen": ["unix:s,principal=bob"], "reflection": False})
    started = command(monkeypatch, text)
    monkeypatch.chdir("/")
    assert load_config(flags_of(started)) == wanted
    assert Path(started[0]).is_file() and unit(text)["Environment"] == '"HF_HOME=/mnt/50%% $x"'
    assert int(unit(text)["TimeoutStopSec"]) == 52, "past the drain"


def test_both_systems_start_the_same(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    started = command(monkeypatch, printed(capsys, "--memory", "3G"))
    monkeypatch.setattr(sys, "platform", "darwin")
    agent = plistlib.loads(printed(capsys, "--memory", "3G").encode())
    assert agent["ProgramArguments"] == started and started[-2:] == ["--memory", "3G"]
    assert agent["KeepAlive"] == {"SuccessfulExit": False}, "or `sapwood stop` would be in vain"
    assert agent["ExitTimeOut"] > Limits().drain_s_max + 5


@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_it_is_written_and_only_ours_is_overwritten(
    system: str, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    place = {
        "linux": home / ".config/systemd/user/sapwood.service",
        "darwin": home / "Library/LaunchAgents/sapwood.plist",
    }[system]
    assert main(["install-service"]) == 0
    told, ours = capsys.readouterr().out, place.read_text()
    assert str(place) in told and len(told.splitlines()) == 3, "the two commands that start it"
    assert ours == printed(capsys)
    # What we wrote and nobody touched is ours, from another version too.
    assert main(["install-service", "--memory", "3G"]) == 0
    assert re.search("restart|bootout", capsys.readouterr().out)
    changed = place.read_text().replace("3G", "4G")
    place.write_text(changed)
    assert main(["install-service"]) == 1
    assert "--force" in capsys.readouterr().err and place.read_text() == changed
    assert main(["install-service", "--force"]) == 0 and place.read_text() == ours
    place.write_text("somebody's own\n")
    assert main(["install-service"]) == 1 and place.read_text() == "somebody's own\n"
    assert os.listdir(place.parent) == [place.name], "nothing is left beside it"


def test_elsewhere_it_is_refused(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    (home / "systemctl").unlink()
    assert main(["install-service"]) == 1
    assert "no systemctl here" in capsys.readouterr().err
    monkeypatch.setattr(sys, "platform", "freebsd14")
    assert main(["install-service", "--print"]) == 1
    assert "launchd and systemd" in capsys.readouterr().err
    assert main(["install-service", "--memory", "much"]) == 2, "what serve would refuse"
    assert not (home / ".config").exists()


def test_a_worker_of_a_fleet_has_the_same_settings() -> None:
    worker = unit((ROOT / "examples/fleet/sapwood.service").read_text())
    assert SERVICE.items() <= worker.items()


@pytest.mark.outside("systemd-analyze")
def test_systemd_takes_the_unit(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(sys, "platform", "linux")
    file = home / "sapwood.service"
    file.write_text(printed(capsys, "--tokens", "a b%c$d"))
    judged = subprocess.run(
        [program("systemd-analyze"), "verify", file],
        env=os.environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (judged.returncode, judged.stderr) == (0, "")

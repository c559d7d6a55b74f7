"""`sapwood config`: what is shown is a file that says the same, and a file is checked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sapwood.daemon.cli.main import main
from sapwood.daemon.settings.config import load_config
from tests.test_rooms import ROOT


def test_what_is_shown_is_a_file_that_says_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, copy = tmp_path / "c.toml", tmp_path / "copy.toml"
    file.write_text(
        'model = "a/\\u00e9"\ngrammar = "lark"\n[limits]\nslots_max = 3\n'
        '[principals.bob]\nweight = 2\npool = "p"\n'
    )
    monkeypatch.setenv("SAPWOOD_MEMORY", "3G")
    flags = ["--config", str(file), "--listen", "127.0.0.1:0", "--no-reflection"]
    assert main(["config", "show", *flags]) == 0
    out = capsys.readouterr().out
    assert f"# {file}: model" in out and "# SAPWOOD_MEMORY" in out and "# --listen" in out
    copy.write_text(out)
    given = {"config": str(file), "listen": ["127.0.0.1:0"], "reflection": False}
    assert load_config({"config": str(copy)}) == load_config(given, {"SAPWOOD_MEMORY": "3G"})
    assert main(["config", "check", str(copy)]) == 0
    assert capsys.readouterr().out == f"{copy}: ok\n"
    assert main(["config", "show", "--json", *flags]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["memory"] == {"value": "3G", "from": "SAPWOOD_MEMORY"}
    assert told["metrics"] == {"value": "127.0.0.1:9464", "from": ""}


def test_a_file_that_does_not_hold_is_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.toml"
    file.write_text("memry = 1")
    assert main(["config", "check", str(file)]) == 2
    said = f"sapwood: {file}: unknown setting 'memry' (did you mean memory?)\n"
    assert capsys.readouterr().err == said


def test_every_setting_has_a_flag_and_a_line_on_the_page(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Tables are for the file alone."""
    assert main(["config", "show", "--json"]) == 0
    names = json.loads(capsys.readouterr().out).keys()
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    help, page = capsys.readouterr().out, (ROOT / "docs/settings.md").read_text()
    for name in names - {"limits", "principals"}:
        assert f"--{name.replace('_', '-')}" in help
        assert f"| `{name}` |" in page
    assert "`[limits]`" in page and "`[principals.NAME]`" in page

"""Completion in shells: the scripts know the flags, and bash, asked in earnest, uses them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from sapwood.daemon.cli.main import main


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_have_commands_and_flags(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = script(shell, capsys)
    assert all(word in text for word in ("generate", "max-tokens", "draft-depth", "stop"))


def test_bash_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    (tmp_path / "script").write_text(script("bash", capsys))
    (tmp_path / "schema.json").touch()
    for words, expected in (
        (["gen"], {"generate"}),
        (["generate", "--max-"], {"--max-tokens"}),
        (["generate", "--file", "sche"], {"schema.json"}),
        (["completion", "z"], {"zsh"}),
    ):
        line = ["sapwood", *words]
        ask = f"""
            source ./script
            COMP_WORDS=({" ".join(line)}); COMP_CWORD={len(line) - 1}
            $(complete -p sapwood | sed 's/.*-F \\([^ ]*\\) .*/\\1/') sapwood
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        done = subprocess.run(
            [bash, "-c", ask], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert {word.strip() for word in done.stdout.split()} >= expected, done.stderr

"""What documents say of the command line is so: commands and flags of every snippet are there."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from sapwood.daemon.cli.main import _parser, main
from sapwood.daemon.cli.parser import Parser
from sapwood.daemon.settings.config import (
    DEFAULT_CACHE_DISK,
    DEFAULT_CACHE_WRITES,
    DEFAULT_ITL_TARGET,
    load_config,
)
from sapwood.daemon.sizes import parse_size
from tests.test_rooms import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`((?:\.venv/bin/)?sapwood [^`\n]+)`")
COMMAND = re.compile(r"(?:^|[|(] ?|\s)(?:\.venv/bin/)?sapwood ([a-z][^|;&)]*)")


def ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def commands(page: Path) -> Iterator[str]:
    """What stands behind `sapwood`, in snippets and in code within text."""
    text = page.read_text()
    for language, block in FENCE.findall(text):
        if language in ("", "sh", "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                yield from COMMAND.findall(line.partition(" #")[0])
    for code in CODE.findall(FENCE.sub("", text)):
        yield from COMMAND.findall(code)


@cache
def commands_by_name() -> dict[str, Parser]:
    return _parser()[1]


def parser_of(words: list[str]) -> tuple[Parser, list[str]]:
    """The command's own parser, and the words behind its name."""
    by_name = commands_by_name()
    assert words[0] in by_name, f"there is no command {words[0]}"
    parser, rest = by_name[words[0]], words[1:]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and rest:
            return action.choices[rest[0]], rest[1:]
    return parser, rest


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_commands_have_the_flags(page: Path) -> None:
    for line in commands(page) if page.name != "CHANGELOG.md" else ():
        if line.startswith("demo"):  # reads its own
            continue
        words = [word.strip("[]…") for word in shlex.split(line)]
        parser, rest = parser_of(words)
        known = parser._option_string_actions
        flags = {word.partition("=")[0] for word in rest if word.startswith("--")}
        assert flags <= known.keys(), f"sapwood {line}"


def test_settings_in_documents_hold(tmp_path: Path) -> None:
    files = [
        block
        for page in PAGES
        for language, block in FENCE.findall(page.read_text())
        if language == "toml"
    ]
    assert len(files) >= 2
    for text in files:
        tomllib.loads(text)
        (tmp_path / "c.toml").write_text(text)
        load_config({"config": str(tmp_path / "c.toml")})


def test_the_page_of_settings_has_their_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    """Where a default is a value and not a sentence, it is the one that is written there."""
    assert main(["config", "show", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    page = (ROOT / "docs/settings.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| ([^|]+) \|$", page, re.MULTILINE))
    for name, it in shown.items():
        value = it["value"]
        if name in ("limits", "principals", "listen") or value is None:
            continue
        wanted = str(value).lower() if isinstance(value, bool) else str(value)
        assert wanted in rows[name], f"{name}: the page says {rows[name]}, it is {wanted}"
    # Those that follow from others, which `config show` calls not set.
    assert float(rows["itl_target"]) == DEFAULT_ITL_TARGET
    assert parse_size(rows["cache_disk"]) == DEFAULT_CACHE_DISK
    assert parse_size(rows["cache_writes"]) == DEFAULT_CACHE_WRITES

"""The site of docs/ is built without a dead link, and its own search finds what readers ask."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.questions import QUESTIONS, Question
from tests.test_rooms import ROOT

PYTHON = ROOT / ".venv-docs/bin/python"
FOUND_MAX = 5  # what somebody looks at

pytestmark = [pytest.mark.long, pytest.mark.timeout(900), pytest.mark.outside("mkdocs")]


def made(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def answers() -> dict[str, list[str]]:
    """By question, addresses of sections, the best first."""
    built = made("make", "docs")
    assert built.returncode == 0, built.stdout + built.stderr
    asked = [question.asked for question in QUESTIONS]
    found = made(PYTHON, "docs/_site/ask.py", *asked)
    assert found.returncode == 0, found.stderr
    lines: list[Any] = [json.loads(line) for line in found.stdout.splitlines()]
    return dict(zip(asked, lines, strict=True))


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.asked)
def test_the_search_finds_it(question: Question, answers: dict[str, list[str]]) -> None:
    """The page that answers is among the first, however the page of questions puts it."""
    found = answers[question.asked][:FOUND_MAX]
    assert question.page.replace(".md", ".html") in {at.partition("#")[0] for at in found}, found


@pytest.mark.parametrize(
    ("link", "code"),
    [("memory.md#memory", 0), ("none.md", 1), ("memory.md#none", 1), ("../no/such/file.py", 1)],
)
def test_a_dead_link_or_anchor_fails(link: str, code: int, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text(f"# A page\n\n[a link]({link})\n")
    (docs / "memory.md").write_text("# Memory\n")
    settings = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[0]
    settings = settings.replace("[docs/_site/", f"[{ROOT}/docs/_site/")
    (tmp_path / "mkdocs.yml").write_text(settings)
    built = made(PYTHON, "-m", "mkdocs", "build", "--strict", "-f", tmp_path / "mkdocs.yml")
    assert built.returncode == code, built.stderr

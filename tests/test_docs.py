"""What the documents name is there: files, links, make targets; and the glossary is in order."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_rooms import FOLDERS, ROOT, ROOTS

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
HISTORY = {ROOT / "CHANGELOG.md"}  # names what was there then
TOPS = "|".join([*FOLDERS, *ROOTS, "docs", "examples", "proto"])
# A path from the top, written as code: nothing with a wildcard or a placeholder in it.
NAMED = re.compile(rf"`((?:{TOPS})/[\w/.-]+)`")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_files_that_are_named_are_there(page: Path) -> None:
    named = set(NAMED.findall(page.read_text())) if page not in HISTORY else set()
    made = {"docs/coverage.md"}  # by a make target
    assert {name for name in named - made if not is_there(name)} == set()


def is_there(name: str) -> bool:
    """A module may be named without its suffix."""
    return (ROOT / name).exists() or (ROOT / f"{name}.py").exists()


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page: Path) -> None:
    local = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_make_targets_that_are_named_are_there() -> None:
    targets = set(re.findall(r"^([\w.-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"`make ([a-z-]+)", page.read_text()))
        assert named - targets == set(), page


def words() -> Iterator[str]:
    text = (ROOT / "docs/glossary.md").read_text()
    yield from re.findall(r"^- \*\*(.+?)\.\*\*", text, re.MULTILINE)


def test_the_glossary_is_in_order_and_says_each_word_once() -> None:
    found = list(words())
    assert len(found) > 80
    assert found == sorted(set(found), key=lambda word: word.replace("-", " "))


def test_the_map_and_the_glossary_say_where() -> None:
    """Every row of the table of CONTRIBUTING.md names a file or folder of ours."""
    table = (ROOT / "CONTRIBUTING.md").read_text().partition("| X | look at |")[2]
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", table, re.MULTILINE)
    assert len(rows) >= 25
    assert [what for what, where in rows if not re.search(rf"`(?:{TOPS})/", where)] == []

"""What the documents name is there: files, links and their anchors, make targets, what Python of
ours they use; what readers ask is answered; pages read off the code are; the glossary is in order.

What they say of the command line: tests/daemon/cli/test_documented.py. The site: test_site.py.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import sapwood
from tests.model import sizes
from tests.questions import QUESTIONS, Question
from tests.reference_pages import PAGES as REFERENCES
from tests.test_rooms import FOLDERS, ROOT, ROOTS

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
HISTORY = {ROOT / "CHANGELOG.md"}  # names what was there then
TOPS = "|".join([*FOLDERS, *ROOTS, "docs", "examples", "proto"])
# A path from the top, written as code: nothing with a wildcard or a placeholder in it.
NAMED = re.compile(rf"`((?:{TOPS})/[\w/.-]+)`")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
ANCHORED = re.compile(r"\]\(([^)#\s:]*)#([^)\s]+)\)")
READ_OFF = REFERENCES | {"sizes.md": sizes.page}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


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


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_to_headings(page: Path) -> None:
    dead = [
        f"{link}#{anchor}"
        for link, anchor in ANCHORED.findall(page.read_text())
        if (at := (page.parent / link).resolve() if link else page).suffix == ".md" and at.exists()
        if anchor not in anchors(at)
    ]
    assert dead == []


@cache
def anchors(page: Path) -> set[str]:
    """As they are made of headings everywhere."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    plain = (re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\s-]", "", text).strip().lower().replace(" ", "-") for text in plain}


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.asked)
def test_what_readers_ask_is_answered(question: Question) -> None:
    text = (ROOT / "docs" / question.page).read_text()
    _, found, behind = text.partition(f"# {question.heading}\n")
    assert found, "no such heading"
    assert question.answer in re.split(r"^#{1,3} ", behind, flags=re.MULTILINE)[0]


@pytest.mark.parametrize("name", READ_OFF)
def test_pages_that_are_read_off_the_code_are(name: str) -> None:
    made = READ_OFF[name]()
    module = "tests.model.sizes" if name == "sizes.md" else "tests.reference_pages"
    assert (ROOT / "docs" / name).read_text() == made, f"python -m {module} --rewrite"


def test_snippets_use_the_python_that_is_there() -> None:
    """They compile; what they import of ours, call on a client and pass to it is there."""
    methods = {name for kind in (sapwood.Client, sapwood.AsyncClient) for name in dir(kind)}
    known = sapwood.GenerateOptions.__annotations__.keys()
    snippets = [
        (page, text)
        for page in PAGES
        for language, text in FENCE.findall(page.read_text())
        if language == "python" and "openai" not in text
    ]
    assert len(snippets) >= 5
    for page, text in snippets:
        for node in ast.walk(ast.parse(text, str(page))):
            match node:
                case ast.ImportFrom(module="sapwood", names=names):
                    assert {name.name for name in names} <= {*sapwood.__all__}, page
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="client"), attr=method), keywords=keywords
                ):
                    assert method in methods, page
                    given = {keyword.arg for keyword in keywords if method == "generate"}
                    assert given - known <= {"timeout", "resumable", "session"}, page


def test_make_targets_that_are_named_are_there() -> None:
    targets = set(re.findall(r"^([\w.-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    targets |= {"$(VENV)", ".venv"}
    for page in PAGES:
        text = page.read_text()
        named = set(re.findall(r"`make ([a-z-]+)", text))
        for _, block in FENCE.findall(text):
            named |= set(re.findall(r"^make ([.a-z-]+)", block, re.MULTILINE))
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

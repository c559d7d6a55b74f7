"""docs/invariants.md and the tests agree: each id has a test that quotes it, or a reason."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.test_rooms import ROOT

COUNTS = {"T": 15, "C": 6, "S": 10, "L": 9, "M": 3, "R": 10, "D": 4, "N": 4}
ALL = {f"{letter}{n + 1}" for letter, count in COUNTS.items() for n in range(count)}
ROW = re.compile(r"^\| ([A-Z][0-9]+) \| (.+?) \|(.*)\|$", re.MULTILINE)
# In what a test says, or as a part of its name. A file's own docstring proves nothing.
QUOTE = re.compile(rf"\b([{''.join(COUNTS)}][0-9]{{1,2}})\b")
NAMED = re.compile(rf"_([{''.join(COUNTS).lower()}][0-9]{{1,2}})(?=_|$)")


def listed() -> dict[str, str]:
    """By id, why it has no test yet; "" where it has one."""
    rows = ROW.findall((ROOT / "docs/invariants.md").read_text())
    found = {id: why.strip() for id, _, why in rows}
    assert len(found) == len(rows), "an id is listed twice"
    return found


def quoted(text: str) -> Iterator[str]:
    """Ids in the names of a file's tests, and in strings of its functions: docstrings, messages."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name.startswith("test_"):
                yield from (id.upper() for id in NAMED.findall(node.name))
            for inner in ast.walk(node):
                if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                    yield from QUOTE.findall(inner.value)


def quotes() -> set[str]:
    """Of the tests themselves: a helper's check counts where a test says that it relies on it."""
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    return {id for path in files for id in quoted(path.read_text())} & ALL


def test_every_id_is_listed_once() -> None:
    assert listed().keys() == ALL


def test_an_id_has_a_test_or_a_reason_and_never_both() -> None:
    waiting = {id for id, why in listed().items() if why}
    assert ALL - quotes() - waiting == set(), "neither a test nor a reason"
    assert quotes() & waiting == set(), "a test, and a reason why there is none"


def test_what_counts_as_a_quote() -> None:
    text = '''
"""The first (T1)."""
def test_s6_and_so_on(C5, l7_):  # C1
    """R2; not XT3, nor T4x."""
    assert C5, f"M1: {L3}"
def helper_l7():
    assert l7_ == "D3"
'''
    assert set(quoted(text)) == {"R2", "S6", "M1", "D3"}

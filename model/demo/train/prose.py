"""Real prose, so that the model sees more than templates: the documentation that comes with Python.

The language reference of pydoc_data and the docstrings of the standard library (both PSF-2.0) lie
on every machine that can run this. They differ a little between Python versions.
"""

from __future__ import annotations

import ast
import re
import sysconfig
from pathlib import Path
from pydoc_data import topics

SHORTEST = 120  # characters


def paragraphs() -> list[str]:
    """Paragraphs of plain sentences, in a fixed order."""
    texts = [*topics.topics.values(), *docstrings()]
    found = [
        re.sub(r"\s+", " ", paragraph).strip()
        for text in texts
        for paragraph in re.split(r"\n\s*\n", text)
    ]
    return list(dict.fromkeys(text for text in found if reads_well(text)))


def docstrings() -> list[str]:
    library = Path(sysconfig.get_path("stdlib"))
    files = [
        file
        for file in sorted(library.rglob("*.py"))
        if not {"site-packages", "dist-packages", "test", "tests"} & set(file.parts)
    ]
    return [text for file in files for text in file_docstrings(file)]


def file_docstrings(file: Path) -> list[str]:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):  # the library ships broken files for its own tests
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    return [text for text in found if text]


def reads_well(text: str) -> bool:
    """Whether it is English rather than code or a table."""
    if len(text) < SHORTEST or not text.isascii() or text[-1] not in ".:":
        return False
    letters = sum(letter.isalpha() or letter == " " for letter in text)
    return letters > 0.93 * len(text) and text[0].isupper()

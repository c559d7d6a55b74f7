"""The house rules of ARCHITECTURE.md that a machine can check, read from the syntax trees."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("cache", "daemon", "model", "sapwood", "scheduler")
FILES = sorted(
    path.relative_to(ROOT)
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*.py")
    if "v1" not in path.parts
)
NAMES = [str(file) for file in FILES]

MAY_IMPORT = {
    "cache": {"cache"},
    "daemon": {*FOLDERS},
    "model": {"cache", "model", "scheduler.plan"},
    "sapwood": {"sapwood"},
    "scheduler": {"cache", "scheduler"},  # the pure parts: see PURE
}
SHELL = {"anyio", "asyncio", "grpc", "prometheus_client"}
ARRAYS = {"mlx", "mlx_lm"}
WORLD = {"logging", "os", "random", "threading", "time"}
# Pure all the way down: these, and every module of ours that they import.
PURE = {name for name in NAMES if name.startswith("scheduler/")} | {
    "cache/ledger.py",
    "cache/snapshot.py",
    "cache/tree.py",
}
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 400


@cache
def tree(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text())


def imports(name: str) -> set[str]:
    """Dotted names that a file imports: `from a import b` counts as a.b where that is a module."""
    found = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno} imports relatively"
            found |= {_module(node.module, alias.name) for alias in node.names}
    return found


def _module(package: str, name: str) -> str:
    path = ROOT / package.replace(".", "/") / name
    return f"{package}.{name}" if path.with_suffix(".py").exists() or path.is_dir() else package


def libraries(name: str) -> set[str]:
    return {module.split(".")[0] for module in imports(name)}


def within(module: str, allowed: set[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in allowed)


@pytest.mark.parametrize("name", NAMES)
def test_imports_follow_the_edges_of_the_house(name):
    ours = {module for module in imports(name) if module.split(".")[0] in FOLDERS}
    allowed = MAY_IMPORT[name.split("/")[0]]
    assert {module for module in ours if not within(module, allowed)} == set()


@pytest.mark.parametrize("name", NAMES)
def test_libraries_stay_in_their_folders(name):
    folder = name.split("/")[0]
    banned = set() if folder in ("daemon", "sapwood") else SHELL
    if folder not in ("cache", "model"):
        banned = banned | ARRAYS
    assert libraries(name) & banned == set()


def test_the_core_is_pure():
    reached, rest = set(), [name for name in PURE if (ROOT / name).exists()]
    while rest:
        reached.add(name := rest.pop())
        assert libraries(name) & (SHELL | ARRAYS | WORLD) == set(), name
        ours = {f"{module.replace('.', '/')}.py" for module in imports(name)}
        rest += (ours & set(NAMES)) - reached


@pytest.mark.parametrize("name", NAMES)
def test_files_are_short_and_say_what_they_hold(name):
    source = (ROOT / name).read_text()
    assert len(source.splitlines()) <= FILE_LINES_MAX
    assert not source.strip() or ast.get_docstring(tree(name))
    assert not re.search(r"\b(TOD[O]|FIXM[E]|XX[X])\b", source)


@pytest.mark.parametrize("name", NAMES)
def test_functions_are_short(name):
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    long = [
        f"{node.name} ({node.end_lineno - node.lineno + 1} lines)"
        for node in ast.walk(tree(name))
        if isinstance(node, functions) and node.end_lineno - node.lineno >= FUNCTION_LINES_MAX
    ]
    assert long == []


def test_nothing_is_defined_for_nobody():
    """Each function, class and method is named somewhere; dunders are called by the language."""
    defined = {
        node.name: f"{name}:{node.lineno}"
        for name in NAMES
        for node in ast.walk(tree(name))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not re.fullmatch("__.*__", node.name)
    }
    everywhere = [
        path for top in (*FOLDERS, "bench", "tests") for path in (ROOT / top).rglob("*.py")
    ]
    named = {word for path in everywhere for word in words(str(path.relative_to(ROOT)))}
    assert {name: where for name, where in defined.items() if name not in named | {"main"}} == {}


def words(name: str) -> set[str]:
    """Identifiers that a file uses, those in strings and imports included."""
    found: set[str] = set()
    for node in ast.walk(tree(name)):
        match node:
            case ast.Name(id=word) | ast.Attribute(attr=word) | ast.Constant(value=str(word)):
                found.add(word)
            case ast.alias(name=dotted):
                found |= set(dotted.split("."))
    return found

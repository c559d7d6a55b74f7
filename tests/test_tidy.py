"""The house rules of size and naming that a machine can check. Who imports whom: test_rooms.py."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

from tests.test_rooms import PATHS, ROOT, modules, tree

PRODUCT = sorted(path.relative_to(ROOT).as_posix() for path in PATHS.values())
BENCH = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "bench").rglob("*.py"))
TOOLS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "proto").glob("*.py"))
TESTS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py"))
WRITTEN = [*PRODUCT, *BENCH, *TOOLS, *TESTS]
TEXTS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("proto", "tests", "model/demo/train")
    for pattern in ("*.proto", "*.txt", "*.jinja")
    for path in (ROOT / folder).rglob(pattern)
)
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 350

# Public names that stand in more than one file on purpose.
WIRE = "the wire's message, as the core says it and as the client reads it"
TWICE = {
    "Delta": WIRE,
    "FinishReason": WIRE,
    "TYPE_CHECKING": "what typing has under this name, where typing takes too long to import",
    "TokenLogprobs": WIRE,
    "ToolCall": WIRE,
    "Usage": WIRE,
    "main": "where a command begins",
    "measure": "the one entry of every benchmark, which bench/__main__.py calls by its file's name",
}

# What only others call, and classes whose fields are read all at once.
CALLED_ELSEWHERE = {
    "concat": "jinja2, of its environment",
    "intercept_service": "grpc, of its interceptors",
    "run_tools": "the caller's own programs, of both clients",
}
READ_WHOLE = {
    "NodeRow": "the live page reads its columns",
    "StepRow": "the live page reads its columns",
    "Figures": "asdict makes the demo's JSON of it",
    "ConnectOptions": "a TypedDict: its keys are read by name",
    "GenerateOptions": "a TypedDict: its keys are read by name",
}


def test_files_are_short() -> None:
    lines = {name: len((ROOT / name).read_text().splitlines()) for name in [*WRITTEN, *TEXTS]}
    assert {name: count for name, count in lines.items() if count > FILE_LINES_MAX} == {}


def test_files_say_what_they_hold_and_leave_nothing_for_later() -> None:
    for name in WRITTEN:
        source = (ROOT / name).read_text()
        assert not source.strip() or ast.get_docstring(tree(ROOT / name)), name
        assert not re.search(r"\b(TOD[O]|FIXM[E]|XX[X])\b", source), name


def test_what_is_public_says_what_it_is() -> None:
    """Each public class, function and method that is installed has a docstring."""
    installed = [name for name in PRODUCT if not name.startswith("model/demo/train/")]
    silent = {
        f"{name}:{node.lineno} {place}"
        for name in installed
        for place, node in _public(tree(ROOT / name).body)
        if not ast.get_docstring(node)
    }
    assert silent == set()


def _public(
    body: Sequence[ast.stmt], inside: str = ""
) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Definitions by dotted name, but those with "_" in front and what they or functions hold."""
    for node in _statements(body):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.name.startswith("_"):
            continue
        place = inside + node.name
        yield place, node
        if isinstance(node, ast.ClassDef):
            yield from _public(node.body, f"{place}.")


def test_functions_are_short() -> None:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    lines = {
        f"{name}: {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for name in WRITTEN
        for node in ast.walk(tree(ROOT / name))
        if isinstance(node, functions)
    }
    assert {place: count for place, count in lines.items() if count > FUNCTION_LINES_MAX} == {}


def test_nothing_is_defined_for_nobody() -> None:
    """Each function, class and method has a user in the product; dunders the language calls."""
    defined = {
        node.name: f"{name}:{node.lineno}"
        for name in PRODUCT
        for node in ast.walk(tree(ROOT / name))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not re.fullmatch("__.*__", node.name)
    }
    used = {word for name in PRODUCT for word in words(name)}
    idle = {name: where for name, where in defined.items() if name not in used}
    assert {name: where for name, where in idle.items() if name not in CALLED_ELSEWHERE} == {}
    assert idle.keys() >= CALLED_ELSEWHERE.keys(), "a name of the list has a user"


def test_no_field_is_kept_for_nobody() -> None:
    """Each annotated field of a class is read somewhere in product or benchmarks."""
    read = {
        node.attr
        for name in [*PRODUCT, *BENCH]
        for node in ast.walk(tree(ROOT / name))
        if isinstance(node, ast.Attribute)
    }
    fields = {
        (node.target.id, f"{name}: {owner.name}")
        for name in PRODUCT
        for owner in ast.walk(tree(ROOT / name))
        if isinstance(owner, ast.ClassDef)
        for node in owner.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    idle = {(field, owner) for field, owner in fields if field not in read}
    assert {place for place in idle if place[1].split()[-1] not in READ_WHOLE} == set()


def words(name: str) -> set[str]:
    """Identifiers that a file uses, those in strings included; an import alone is no use."""
    found: set[str] = set()
    for node in ast.walk(tree(ROOT / name)):
        match node:
            case ast.Name(id=word) | ast.Attribute(attr=word) | ast.Constant(value=str(word)):
                found.add(word)
    return found


def test_a_public_name_means_one_thing() -> None:
    """Or it is listed, with the reason: at most ten."""
    places = defaultdict(set)
    for name in [*PRODUCT, *BENCH]:
        for public in filter(lambda word: not word.startswith("_"), top_level_names(name)):
            places[public].add(name)
    assert {public for public, files in places.items() if len(files) > 1} == TWICE.keys()
    assert len(TWICE) <= 10


def top_level_names(name: str) -> Iterator[str]:
    """Classes, functions and variables that a file defines."""
    for node in _statements(tree(ROOT / name).body):
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                yield node.name
            case ast.Assign(targets=targets):
                stored = (inner for target in targets for inner in ast.walk(target))
                yield from (inner.id for inner in stored if isinstance(inner, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=word)):
                yield word


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Those of a file's top level, those under its ifs, tries and withs included."""
    for node in body:
        yield node
        for inner in ("body", "orelse", "finalbody"):
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _statements(getattr(node, inner, []))


def test_tests_mirror_the_rooms() -> None:
    """A test lies in the folder of its room; `system` tests the whole, `examples` what is shown.

    `sim` plays the pure rooms together.

    Below the daemon it also imports from that room; the daemon is tested through its sockets.
    """
    rooms = {str(path.parent.relative_to(ROOT)) for path in PATHS.values()}
    for name in (name for name in TESTS if "/test_" in name):
        folder = name.removeprefix("tests/").rpartition("/")[0]
        assert folder in rooms | {"", "bench", "examples", "sim", "system"}, name
        if folder.split("/")[0] in ("cache", "model", "scheduler"):
            wanted = f"sapwood.{folder.replace('/', '.')}."
            used = set(modules(ROOT / name)) | helper_modules(name)
            assert any(module.startswith(wanted) for module in used), name


def helper_modules(name: str) -> set[str]:
    """What the helpers in tests/ that a test imports themselves import."""
    helpers = {module.replace(".", "/") + ".py" for module in modules(ROOT / name)}
    return {inner for helper in helpers & set(TESTS) for inner in modules(ROOT / helper)}

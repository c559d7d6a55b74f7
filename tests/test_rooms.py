"""The edges of the house, read from the syntax trees: which room may import what.

- A room is a folder with the files that lie in it; files of `scheduler/` itself are a room too.
- Every import counts, those inside of functions and under TYPE_CHECKING included.
- One room rises over another or does not know it: circles are banned among rooms and among files.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("cache", "daemon", "model", "scheduler")
ROOTS = ("sapwood", "bench", "tests")

# What each room may import of ours: whole rooms, or single files of one.
EDGES: Mapping[str, set[str]] = {
    "cache": set(),
    "cache/prefix": set(),
    "cache/arrays": {
        "cache",
        *(f"cache/prefix/{file}" for file in ("blocks", "catalogue", "snapshot")),
    },
    "cache/disk": {"cache/prefix/blocks", "cache/prefix/catalogue", "scheduler/disk"},
    "scheduler": {"cache", "cache/prefix"},
    "scheduler/policy": set(),
    "scheduler/reply": {"scheduler"},
    "scheduler/core": {"cache/prefix", "scheduler", "scheduler/policy", "scheduler/reply"},
    "model/checkpoint": set(),
    "model/prompt": {"model/checkpoint", "scheduler/control_tokens", "scheduler/sampling"},
    "model/constraints": {
        *(f"scheduler/{file}" for file in ("control_tokens", "reply_bounds", "thinking")),
    },
    "model/sampling": {
        *(f"scheduler/{file}" for file in ("reply_bounds", "result", "sampling")),
    },
    "model": {
        *("cache", "cache/arrays"),
        *(f"cache/prefix/{file}" for file in ("blocks", "catalogue", "snapshot")),
        *("model/checkpoint", "model/constraints", "model/prompt", "model/sampling"),
        *("scheduler/disk", "scheduler/model_facts", "scheduler/plan"),
        *("scheduler/replay", "scheduler/result", "scheduler/sampling"),
    },
    "model/convert": {"model", "model/checkpoint", "model/prompt"},
    "model/demo/train": {"model", "model/checkpoint", "scheduler/plan", "scheduler/sampling"},
    "sapwood/client": {"sapwood/v1"},
    "sapwood": {"sapwood/client"},
    "daemon": {"sapwood"},
    "daemon/settings": {"daemon", "sapwood/client/address", "scheduler/limits"},
    "daemon/engine": {
        *("cache/disk/store", "daemon"),
        *(f"cache/prefix/{file}" for file in ("catalogue", "describe", "sketch", "snapshot")),
        *("model/constraints/spec", "model/prompt/errors", "scheduler"),
    },
    "daemon/telemetry": {"daemon", "sapwood", "scheduler"},
    "daemon/rpc": {
        *(
            "cache/prefix/catalogue",
            "cache/prefix/blocks",
            "cache/prefix/describe",
            "daemon",
            "daemon/engine",
            "daemon/telemetry",
        ),
        *("model/constraints/spec", "model/prompt/errors"),
        *("sapwood/client/errors", "sapwood/v1", "scheduler"),
        *(f"daemon/settings/{file}" for file in ("followed", "principals", "tokens")),
    },
    "daemon/http": {
        *("daemon", "daemon/engine", "daemon/rpc/gate", "daemon/rpc/principals"),
        *("daemon/settings", "daemon/telemetry", "sapwood", "scheduler"),
    },
    "daemon/page": {
        *("daemon", "daemon/engine", "daemon/http/connections", "daemon/http/endpoint"),
        *("daemon/rpc/gate", "daemon/settings/addresses", "sapwood", "scheduler"),
    },
    "daemon/gateway": {
        *("cache/prefix/describe", "daemon", "daemon/engine", "daemon/rpc", "daemon/settings"),
        *("sapwood", "sapwood/v1", "scheduler"),
    },
    "daemon/process": {
        *("cache/arrays/eight_bits", "cache/disk", "cache/prefix"),
        *("daemon", "daemon/engine", "daemon/gateway"),
        *("daemon/http", "daemon/page", "daemon/rpc", "daemon/telemetry"),
        *("daemon/settings", "model", "model/checkpoint", "model/constraints"),
        *("model/prompt/errors", "sapwood/client/address"),
        *("scheduler", "scheduler/core"),
    },
    "daemon/demo": {"daemon", "daemon/http/families", "sapwood", "scheduler/outcomes"},
    "daemon/chat": {"daemon", "sapwood"},
    "daemon/cli": {
        *(
            "daemon",
            "daemon/chat",
            "daemon/demo",
            "daemon/engine",
            "daemon/process",
            "daemon/settings",
        ),
        *("model", "model/checkpoint", "model/convert"),
        *("sapwood", "sapwood/client/address", "sapwood/client/credentials"),
        *("sapwood/client/fields", "scheduler/limits"),
    },
    "sapwood/__main__": {"daemon/cli", "daemon/entry"},
}
# No clock, no thread, no randomness, no device, no I/O: a simulator drives these as they are.
PURE = {
    "cache",
    "cache/prefix",
    "scheduler",
    "scheduler/core",
    "scheduler/policy",
    "scheduler/reply",
}

SHELL = {"anyio", "asyncio", "grpc", "prometheus_client", "starlette", "uvicorn"}
ARRAYS = {"mlx", "mlx_lm", "numpy"}
GRAMMARS = {"llguidance"}
# All that a pure room may import of Python's own, and what it may not call.
PURE_LIBRARIES = {
    *("__future__", "array", "bisect", "codecs", "collections", "dataclasses", "enum"),
    *("hashlib", "heapq", "itertools", "json", "math", "re", "typing"),
}
IMPURE_CALLS = {"__import__", "breakpoint", "eval", "exec", "input", "open", "print"}


def name_of(path: Path) -> str:
    """`cache/prefix/tree` for the file, `cache/prefix` for a package's own."""
    name = path.relative_to(ROOT).with_suffix("").as_posix()
    return name.removesuffix("/__init__")


PATHS = {
    name_of(path): path
    for path in (
        *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")),
        *(ROOT / "sapwood").glob("*.py"),
        *(ROOT / "sapwood/client").rglob("*.py"),
    )
}
NAMES = sorted(PATHS)


def room_of(name: str) -> str:
    """The folder of a file; sapwood/__main__ has a room to itself."""
    if name == "sapwood/__main__" or PATHS[name].name == "__init__.py":
        return name
    return name.rpartition("/")[0]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def modules(path: Path) -> Iterator[str]:
    """Dotted names that a file imports: `from a import b` also counts as a.b."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}:{node.lineno} imports relatively"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported(name: str) -> set[str]:
    """The files of ours that a file imports, stubs as sapwood/v1."""
    found = set()
    for module in modules(PATHS[name]):
        head, _, rest = module.partition(".")
        if head != "sapwood":
            continue
        inner = rest.replace(".", "/")
        ours = f"sapwood/{inner}".rstrip("/")
        known = inner if inner in PATHS else ours if ours in PATHS else ""
        found.add("sapwood/v1" if inner.split("/")[0] == "v1" else known)
    # The package of an imported file says nothing of its own: its __init__ is empty.
    return {other for other in found if other and _says_something(other)} - {name}


def _says_something(name: str) -> bool:
    return name == "sapwood/v1" or bool(PATHS[name].read_text().strip())


def test_imports_follow_the_edges_of_the_house() -> None:
    for name in filter(_says_something, NAMES):
        allowed = EDGES[room_of(name)] | {room_of(name)}
        known = {other for other in imported(name) if other in allowed}
        rest = imported(name) - known
        strange = {other for other in rest if other not in PATHS or room_of(other) not in allowed}
        assert strange == set(), f"{name} may not import {strange}"


def test_every_room_has_its_edges_and_every_edge_its_rooms() -> None:
    rooms = {room_of(name) for name in NAMES if _says_something(name)}
    assert rooms == EDGES.keys()
    targets = {target for allowed in EDGES.values() for target in allowed}
    assert targets <= rooms | PATHS.keys() | {"sapwood/v1"}


def test_no_edge_is_allowed_for_nobody() -> None:
    used: dict[str, set[str]] = {room: set() for room in EDGES}
    for name in filter(_says_something, NAMES):
        used[room_of(name)] |= imported(name)
    for room, allowed in EDGES.items():
        reached = used[room] | {room_of(other) for other in used[room] & PATHS.keys()}
        assert allowed <= reached, f"{room}: nobody needs {allowed - reached}"


def circle(edges: Mapping[str, set[str]]) -> list[str]:
    """A way that leads back to where it began, or nothing."""
    done: set[str] = set()

    def walk(node: str, way: list[str]) -> list[str]:
        if node in way:
            return [*way[way.index(node) :], node]
        if node in done:
            return []
        for other in sorted(edges.get(node, ())):
            if found := walk(other, [*way, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(edges) if (found := walk(node, []))), [])


def test_no_circle_of_files() -> None:
    assert circle({name: imported(name) for name in NAMES}) == []


def test_no_circle_of_rooms() -> None:
    """Of those that are there: `rpc` and `process` do not know each other both ways."""
    rooms: dict[str, set[str]] = {}
    for name in filter(_says_something, NAMES):
        known = {room_of(other) if other in PATHS else other for other in imported(name)}
        rooms.setdefault(room_of(name), set()).update(known - {room_of(name)})
    assert circle(rooms) == []


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []


def test_nobody_but_main_imports_the_command_line() -> None:
    """Its own files and their tests aside; whoever wants the command takes it from __main__."""
    users = {
        path.relative_to(ROOT).as_posix()
        for root in (*FOLDERS, *ROOTS)
        for path in (ROOT / root).rglob("*.py")
        if any(module.startswith("sapwood.daemon.cli") for module in modules(path))
    }
    own = ("daemon/cli/", "tests/daemon/cli/")
    assert {user for user in users if not user.startswith(own)} == {"sapwood/__main__.py"}


def libraries(path: Path) -> set[str]:
    return {module.split(".")[0] for module in modules(path)}


def test_libraries_stay_in_their_rooms() -> None:
    for name in NAMES:
        banned = set() if name.split("/")[0] in ("daemon", "sapwood") else SHELL
        if not name.startswith(("cache/arrays", "model/")):
            banned = banned | ARRAYS
        if room_of(name) != "model/constraints":
            banned = banned | GRAMMARS
        assert libraries(PATHS[name]) & banned == set(), name


@pytest.mark.parametrize("room", sorted(PURE))
def test_pure_rooms_are_pure_all_the_way_down(room: str) -> None:
    below = {target if target in EDGES else target.rpartition("/")[0] for target in EDGES[room]}
    assert below <= PURE
    for name in (name for name in NAMES if room_of(name) == room):
        assert libraries(PATHS[name]) - {"sapwood"} <= PURE_LIBRARIES, name
        called = {
            node.func.id
            for node in ast.walk(tree(PATHS[name]))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert called & IMPURE_CALLS == set(), name


def test_our_own_code_is_imported_by_one_name() -> None:
    """`cache.x` and `sapwood.cache.x` would be two modules of one file, each with its classes."""
    for root in (*FOLDERS, *ROOTS, "proto"):
        for path in (ROOT / root).rglob("*.py"):
            assert libraries(path) & {*FOLDERS, "proto"} == set(), path
            assert {name for name in strings(path) if _is_bare_module(name)} == set(), path


def strings(path: Path) -> set[str]:
    constants = (node for node in ast.walk(tree(path)) if isinstance(node, ast.Constant))
    return {node.value for node in constants if isinstance(node.value, str)}


def _is_bare_module(text: str) -> bool:
    """A dotted name that an import_module or a monkeypatch would find beside `sapwood`."""
    head, dot, _ = text.partition(".")
    return bool(dot) and head in FOLDERS and text.replace(".", "/") in PATHS


def test_the_links_lead_to_the_folders() -> None:
    for folder in FOLDERS:
        link = ROOT / "sapwood" / folder
        assert link.is_symlink() and link.resolve() == ROOT / folder
        assert not (ROOT / folder).is_symlink()

"""`import sapwood`: cheap, complete, one copy of every module, and no misspelt name passes."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sapwood
from tests.test_rooms import FOLDERS, NAMES, ROOT

HEAVY = {"anyio", "asyncio", "grpc", "google", "mlx", "mlx_lm", "numpy", "rich", "tokenizers"}


def loaded_by(code: str) -> set[str]:
    """All modules that a fresh interpreter has after `code`, by their full names."""
    told = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", told], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return set(done.stdout.split())


def tops(modules: set[str]) -> set[str]:
    return {name.split(".")[0] for name in modules}


def test_importing_it_loads_nothing_but_itself() -> None:
    loaded = loaded_by("import sapwood; sapwood.__version__")
    assert {name for name in loaded if name.startswith("sapwood")} == {"sapwood"}
    assert tops(loaded) & HEAVY == set()


def test_the_pure_core_comes_without_grpc_and_arrays() -> None:
    code = "import sapwood.cache.prefix.tree, sapwood.scheduler.core.core"
    assert tops(loaded_by(code)) & HEAVY == set()


def test_the_client_comes_without_a_model() -> None:
    assert tops(loaded_by("from sapwood import Client")) & {"mlx", "mlx_lm", "numpy"} == set()


def test_every_public_name_is_there() -> None:
    assert all(getattr(sapwood, name) is not None for name in sapwood.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Clent'"):
        getattr(sapwood, "Clent")  # noqa: B009


def test_type_checkers_see_the_same_names_and_no_others() -> None:
    source = ast.parse(Path(sapwood.__file__).read_text())
    guarded = [node for node in source.body if isinstance(node, ast.If)]
    checked, unchecked = guarded
    seen = {
        alias.name
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == set(sapwood.__all__) - {"__version__"}
    # A module __getattr__ that they saw would make every misspelt name one that is there.
    assert ast.unparse(unchecked.test) == "not TYPE_CHECKING"
    functions = [node.name for node in source.body if isinstance(node, ast.FunctionDef)]
    assert functions == ["__dir__"]


def test_no_module_of_ours_is_loaded_twice() -> None:
    modules = [f"sapwood.{name.removeprefix('sapwood/')}".replace("/", ".") for name in NAMES]
    wanted = [m for m in modules if not m.startswith(("sapwood.sapwood", "sapwood.model.demo."))]
    code = "\n".join(f"import {module}" for module in wanted if not module.endswith("__main__"))
    assert tops(loaded_by(code)) & {*FOLDERS, "proto"} == set()

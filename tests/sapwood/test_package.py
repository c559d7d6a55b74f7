"""`import sapwood`: cheap, complete, and one copy of every module."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sapwood
from tests.test_rooms import FOLDERS, NAMES, ROOT

HEAVY = {"anyio", "asyncio", "grpc", "google", "mlx", "mlx_lm", "numpy", "tokenizers"}


def loaded_by(code: str) -> set[str]:
    """Top-level names of all modules that a fresh interpreter has after `code`."""
    told = f"import sys\n{code}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", told], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return set(done.stdout.split())


def test_importing_it_loads_nothing_heavy() -> None:
    assert loaded_by("import sapwood; sapwood.__version__") & HEAVY == set()


def test_the_pure_core_comes_without_grpc_and_arrays() -> None:
    code = "import sapwood.cache.prefix.tree, sapwood.scheduler.core.core"
    assert loaded_by(code) & HEAVY == set()


def test_the_client_comes_without_a_model() -> None:
    assert loaded_by("from sapwood import Client") & {"mlx", "mlx_lm", "numpy"} == set()


def test_every_public_name_is_there() -> None:
    assert set(sapwood.__all__) <= set(dir(sapwood))
    assert all(getattr(sapwood, name) is not None for name in sapwood.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Clent'"):
        sapwood.Clent  # noqa: B018


def test_type_checkers_see_the_same_names() -> None:
    source = ast.parse(Path(sapwood.__file__).read_text())
    (checked,) = [node for node in source.body if isinstance(node, ast.If)]
    seen = {alias.name for node in checked.body for alias in node.names}  # type: ignore[attr-defined]
    assert seen == set(sapwood.__all__) - {"__version__"}


def test_no_module_of_ours_is_loaded_twice() -> None:
    modules = [f"sapwood.{name.removeprefix('sapwood/')}".replace("/", ".") for name in NAMES]
    wanted = [m for m in modules if not m.startswith(("sapwood.sapwood", "sapwood.model.demo."))]
    code = "\n".join(f"import {module}" for module in wanted if not module.endswith("__main__"))
    assert loaded_by(code) & {*FOLDERS, "proto"} == set()

"""What Make sets up: TF32 is off wherever tests run, before mlx is there, and g++ parses little.

Bounds of 1e-4 and less are for float32.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.test_rooms import ROOT

NAME = "MLX_ENABLE_TF32"
BARE = {name: value for name, value in os.environ.items() if name != NAME}


def test_products_of_these_tests_are_float32() -> None:
    assert os.environ.get(NAME) == "0", "TF32 is on: bounds of 1e-4 do not hold on every GPU"


def test_a_bare_pytest_sets_it_before_mlx_is_imported() -> None:
    """Without the Makefile: the order is asserted by conftest, which says so."""
    ask = f"import os, sys, tests.conftest; print(os.environ[{NAME!r}], 'mlx' in sys.modules)"
    assert ran(sys.executable, "-c", ask) == "0 False"
    late = subprocess.run(
        [sys.executable, "-c", "import mlx.core, tests.conftest"],
        cwd=ROOT, env=BARE, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert late.returncode == 1 and "before its environment was set" in late.stderr


@pytest.mark.parametrize("target", ["test", "test-long", "coverage"])
def test_make_sets_it_before_python_starts(target: str, tmp_path: Path) -> None:
    """Each target's own command, with a Python that only shows what it was given."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho ${NAME}\n")
    python.chmod(0o755)
    done = ("-o", "check", "-o", ".venv/.made-from-lock")  # what the target needs, as if it were
    assert ran("make", "-s", target, f"BIN={tmp_path}", *done) == "0"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no CPU's kernels are compiled so")
@pytest.mark.skipif(not shutil.which("g++"), reason="no g++")
def test_make_has_compiled_what_every_kernel_of_a_cpu_includes(tmp_path: Path) -> None:
    """By MLX's own command: g++ passes over what other options made, and says nothing."""
    package = find_spec("mlx")
    assert package is not None and package.submodule_search_locations is not None
    (folder,) = package.submodule_search_locations
    source = tmp_path / "kernel.cpp"
    source.write_text('#include "mlx/backend/cpu/compiled_preamble.h"\n')
    options = ("-std=c++17", "-O3", "-Wall", "-fPIC", "-shared", "-I", f"{folder}/include")
    told = subprocess.run(
        ["g++", *options, "-H", source, "-o", tmp_path / "kernel.so"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    first, *_ = told.stderr.splitlines()
    assert first.startswith("! ") and first.endswith(".gch"), "touch requirements.lock; make .venv"


def ran(*command: str) -> str:
    """Standard output of a command whose environment does not have the variable."""
    done = subprocess.run(command, cwd=ROOT, env=BARE, capture_output=True, text=True, check=True)
    return done.stdout.strip()

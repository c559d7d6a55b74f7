"""Bounds of 1e-4 and less are for float32: TF32 is off wherever tests run, before mlx is there."""

from __future__ import annotations

import os
import subprocess
import sys
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


def ran(*command: str) -> str:
    """Standard output of a command whose environment does not have the variable."""
    done = subprocess.run(command, cwd=ROOT, env=BARE, capture_output=True, text=True, check=True)
    return done.stdout.strip()

"""What needs a tool from outside is left out by `make test`, and named where it cannot run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import outside
from tests.test_rooms import ROOT

PLUGIN = """
from tests.outside import TOOLS, Tool, pytest_runtest_setup, pytest_terminal_summary
TOOLS["nothing"] = Tool("install nothing", program="no-such-program")
TOOLS["python"] = Tool("install python", package="sys")
"""
TESTS = """
import pytest
@pytest.mark.outside("nothing", "python")
def test_without(): raise AssertionError
@pytest.mark.outside("python")
def test_with(): pass
@pytest.mark.skip(reason="needs rest")
def test_other(): pass
"""


@pytest.mark.long
def test_what_is_missing_is_said_at_the_end(tmp_path: Path) -> None:
    """Also by workers, whose reports travel."""
    (tmp_path / "conftest.py").write_text(PLUGIN)
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = outside\n")
    # A folder of its own: else pytest clears those of earlier runs away, for minutes.
    own = ["-p", "no:cacheprovider", f"--basetemp={tmp_path}/base"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--numprocesses", "1", *own],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert "1 passed, 2 skipped" in done.stdout
    assert "NOT RUN" in done.stdout
    assert "1 test: needs nothing (install nothing)\n" in done.stdout
    assert "2 test" not in done.stdout, "what is skipped for another reason is not one of ours"


def test_a_tool_that_nobody_knows_is_our_mistake() -> None:
    with pytest.raises(KeyError):
        outside.missing([pytest.mark.outside("astrolabe").mark])


def test_the_quick_run_leaves_them_out() -> None:
    asked = [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/system/test_envoy.py"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "no tests collected (2 deselected)" in done.stdout

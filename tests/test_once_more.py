"""What fails among others and passes alone is told by name; what fails twice fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_rooms import ROOT

# A test fails the first time, where it is told to.
TESTS = """
import pathlib, pytest
@pytest.mark.parametrize("name", {names})
def test_it(name):
    seen = pathlib.Path(name)
    first = not seen.exists()
    seen.touch()
    assert not (name.startswith("racy") and first) and not name.startswith("broken")
"""


@pytest.mark.parametrize(
    ("names", "code", "told"),
    [
        (["sound", "racy"], 0, ["FLAKY, passed alone: test_it.py::test_it[racy]"]),
        pytest.param(
            ["broken", "racy"],
            1,
            [
                "FAILED, alone too: test_it.py::test_it[broken]",
                "FLAKY, passed alone: test_it.py::test_it[racy]",
            ],
            marks=pytest.mark.long,
        ),
        (["racy1", "racy2", "racy3", "racy4"], 1, []),
    ],
)
def test_only_a_few_get_another_chance(
    names: list[str], code: int, told: list[str], tmp_path: Path
) -> None:
    (tmp_path / "test_it.py").write_text(TESTS.format(names=names))
    (tmp_path / "pytest.ini").write_text("[pytest]\n")

    def run(module: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", module]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    assert run("pytest").returncode == 1
    again = run("tests.once_more")
    assert again.returncode == code, again.stdout
    assert [line for line in again.stdout.splitlines() if "alone" in line] == told


def test_where_pytest_kept_nothing_nothing_is_excused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.once_more"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(command, cwd=tmp_path, env=environment, check=False).returncode == 1

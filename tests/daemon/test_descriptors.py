"""RLIMIT_NOFILE through a whole command, libraries that set it at import included."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import resource, sys
limits = tuple(map(int, sys.argv[1].split(",")))
resource.setrlimit(resource.RLIMIT_NOFILE, limits)
from sapwood.__main__ import main
code = main(sys.argv[2:])
assert "mlx_lm.models.gemma4_text" in sys.modules and "mlx_lm.utils" not in sys.modules
print(code, resource.getrlimit(resource.RLIMIT_NOFILE) == limits)
"""
LOCAL = ["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]


@pytest.mark.parametrize(
    ("command", "limits"),
    [
        (["serve", "--model", "/no/such", *LOCAL], "1024,1024"),
        pytest.param(["serve", "--model", "/no/such", *LOCAL], "256,2000", marks=pytest.mark.long),
        pytest.param(["check", "/no/such"], "1024,1024", marks=pytest.mark.long),
        pytest.param(
            ["convert", "/no/such", "/no/such/bundle"], "1024,1024", marks=pytest.mark.long
        ),
    ],
)
def test_the_processs_own_limit_is_kept(command: list[str], limits: str) -> None:
    """mlx_lm.utils, which is not imported, sets 2048 and 4096, whatever was there."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, limits, *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "1 True"

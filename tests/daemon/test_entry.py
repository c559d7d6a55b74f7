"""What a command of ours leaves at its end where standard output takes nothing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("flag", ["--version", "--help"])
@pytest.mark.parametrize(
    ("full", "said"),
    [(True, "sapwood: cannot write to standard output: No space left on device\n"), (False, "")],
)
def test_output_that_goes_nowhere_is_a_failure_in_one_line(
    flag: str, full: bool, said: str
) -> None:
    """Of a reader that left nothing is said. Python alone ends with 120 and a traceback."""
    reads, writes = os.pipe()
    os.close(reads)
    stdout = os.open("/dev/full", os.O_WRONLY) if full else writes
    command = [sys.executable, "-m", "sapwood", flag]
    # Buffered, as it is unless the environment says otherwise: the last flush is what fails.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, env=environ
    )
    os.close(writes)
    assert (done.returncode, done.stderr) == (1, said)

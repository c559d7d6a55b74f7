"""What a command of ours leaves at its end where standard output takes nothing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Of Python's own, beside what its start imports: each more is time in which a signal kills.
BEFORE = {
    *("__future__", "atexit", "signal", "_signal", "enum", "types", "contextlib", "functools"),
    *("_functools", "collections", "_collections", "_weakref", "operator", "_operator", "keyword"),
    *("reprlib", "itertools", "_collections_abc", "collections.abc", "importlib", "warnings"),
    *("importlib._bootstrap", "importlib._bootstrap_external", "_imp", "_warnings"),
    *("importlib.machinery", "importlib.util", "importlib._abc", "_thread"),
}


def test_signals_are_answered_before_anything_slow_is_imported() -> None:
    told = {}
    for code in ("", "import sapwood.__main__"):
        command = [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"]
        told[code] = set(
            subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
        )
    found = told["import sapwood.__main__"] - told[""]
    ours = {"sapwood", "sapwood.__main__", "sapwood.daemon", "sapwood.daemon.entry"}
    assert ours <= found <= ours | BEFORE


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

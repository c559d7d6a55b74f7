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
    *("importlib.machinery", "importlib.util", "importlib._abc", "_thread", "gc"),
}


def run(code: str, *arguments: str) -> list[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()


def test_signals_are_answered_before_anything_slow_is_imported() -> None:
    told = {}
    for code in ("", "import sapwood.__main__"):
        told[code] = set(run(f"import sys\n{code}\nprint(*sys.modules)"))
    found = told["import sapwood.__main__"] - told[""]
    ours = {"sapwood", "sapwood.__main__", "sapwood.daemon", "sapwood.daemon.entry"}
    assert ours <= found <= ours | BEFORE


def test_serve_imports_nothing_that_a_client_or_a_terminal_needs() -> None:
    """It has all by the time that it finds no model."""
    code = "import sys\nfrom sapwood.__main__ import main\nprint(main(sys.argv[1:]), *sys.modules)"
    local = ("--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0")
    failed, *found = run(code, "serve", "--model", "/nowhere", *local)
    assert failed == "1"
    assert {"sapwood.daemon.process.assemble", "sapwood.daemon.process.start_screen"} <= {*found}
    assert not [name for name in found if name.startswith(("rich", "sapwood.daemon.cli.client"))]


def test_imports_of_serve_are_not_looked_through_and_what_it_loads_is() -> None:
    code = """
import gc
from sapwood.daemon import entry
entry.begin(serves=True)
print(gc.isenabled())
entry.all_imported()
print(gc.isenabled(), gc.get_freeze_count() > 1000)
"""
    assert run(code) == ["False", "True", "True"]


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

"""Generates sapwood/v1 from the contract, or with --check says which stubs have drifted from it.

- The compiler and its plugins are those of the running interpreter's environment, so of the lock.
- The proto path is the Python path: stubs import each other by it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path("sapwood", "v1")


def generate(protos: Path, out: Path) -> None:
    """Compiles every file under `protos` and writes the stubs under `out`."""
    plugins = Path(sys.executable).parent
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={protos}"),
            *(f"--python_out={out}", f"--mypy_out=quiet:{out}"),
            *(f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet:{out}"),
            *sorted(str(path) for path in protos.rglob("*.proto")),
        ],
        check=True,
        env=os.environ | {"PATH": f"{plugins}{os.pathsep}{os.environ['PATH']}"},
    )


def drifted(protos: Path, committed: Path) -> list[str]:
    """Names of the stubs under `committed` that `protos` would not give, missing ones included."""
    with tempfile.TemporaryDirectory() as folder:
        generate(protos, Path(folder))
        fresh, old = _stubs(Path(folder)), _stubs(committed)
    return sorted(name for name in fresh | old if fresh.get(name) != old.get(name))


def _stubs(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / PACKAGE).glob("*_pb2*.py*")}


def main() -> int:
    protos = ROOT / "proto"
    if "--check" not in sys.argv[1:]:
        generate(protos, ROOT)
        return 0
    for name in (names := drifted(protos, ROOT)):
        print(f"{PACKAGE / name} has drifted from the contract: run `make proto`", file=sys.stderr)
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())

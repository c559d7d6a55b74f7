"""An environment for each peer, pinned to the hash, made when it is first wanted.

- They exclude each other (SMG's servicer needs an older mlx-lm), so none is ours or another's.
- `build/peers/NAME` is whole when its stamp equals the requirements it was made from; else it is
  made anew. Needs a package index once, and nothing after.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.machine import ROOT
from bench.measure import BenchError

BUILD = ROOT / "build" / "peers"
REQUIREMENTS = Path(__file__).parent / "requirements"
_STAMP = ".made-from-requirements"
_VERSIONS = (
    "import json, sys; from importlib.metadata import version;"
    "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
)


@dataclass(frozen=True, slots=True)
class Environment:
    """packages: those whose versions a report names."""

    name: str
    packages: tuple[str, ...]

    @property
    def python(self) -> Path:
        return BUILD / self.name / "bin" / "python"

    @property
    def requirements(self) -> Path:
        return REQUIREMENTS / f"{self.name}.txt"

    @property
    def made(self) -> bool:
        """Whether it is there, from these very requirements."""
        stamp = BUILD / self.name / _STAMP
        return stamp.exists() and stamp.read_bytes() == self.requirements.read_bytes()

    def make(self) -> None:
        """Raises BenchError."""
        if self.made:
            return
        print(f"  making {self.python.parents[1]}", flush=True)
        _run([sys.executable, "-m", "venv", "--clear", str(BUILD / self.name)])
        install = ["-m", "pip", "install", "--quiet", "--require-hashes"]
        _run([str(self.python), *install, "-r", str(self.requirements)])
        (BUILD / self.name / _STAMP).write_bytes(self.requirements.read_bytes())

    def versions(self) -> dict[str, str]:
        """Of the named packages, asked of the environment itself."""
        found: dict[str, str] = json.loads(
            _run([str(self.python), "-c", _VERSIONS, *self.packages])
        )
        return found


def _run(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except subprocess.CalledProcessError as error:
        raise BenchError(f"{' '.join(command[:4])}: {error.stderr.strip()[-2000:]}") from error


ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        Environment("mlx-lm", ("mlx", "mlx-lm", "transformers")),
        Environment("mlx-vlm", ("mlx", "mlx-vlm", "transformers")),
        Environment("smg", ("mlx", "mlx-lm", "smg-grpc-servicer", "smg-grpc-proto", "grpcio")),
    )
}

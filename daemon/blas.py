"""Which BLAS computes: found for the daemon before it starts, read off the daemon while it runs.

- MLX's Linux wheel carries the reference BLAS, thirty times slower in float32 than OpenBLAS. A
  preloaded library answers first, whatever MLX was linked against.
- What is reported is what the process has mapped, not what we asked for. NumPy brings an OpenBLAS
  with renamed symbols that nobody else can call: it never counts.
"""

from __future__ import annotations

import ctypes.util
import re
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

_NAMES = {"openblas": "OpenBLAS", "mkl": "MKL", "blis": "BLIS", "blas": "reference BLAS"}
_PRIVATE = "scipy_openblas"
_LIBRARY = re.compile(r"/\S*lib(?!cublas)\S*(?:blas|mkl|blis)\S*\.so[.0-9]*$", re.MULTILINE)


def environment(environ: Mapping[str, str], platform: str = sys.platform) -> dict[str, str]:
    """`environ` with an installed OpenBLAS preloaded, unless something is preloaded already."""
    if platform != "linux" or environ.get("LD_PRELOAD"):
        return dict(environ)
    library = ctypes.util.find_library("openblas")
    return {**environ, "LD_PRELOAD": library} if library else dict(environ)


def loaded(pid: int, platform: str = sys.platform) -> str:
    """The BLAS of a running process of ours, by name and file; "unknown" where none shows."""
    if platform == "darwin":
        return "Accelerate"
    process = Path("/proc", str(pid))
    try:
        maps = process.joinpath("maps").read_text()
        environ = process.joinpath("environ").read_bytes().decode(errors="replace")
    except OSError:
        return "unknown"
    preload = next((e[11:] for e in environ.split("\0") if e.startswith("LD_PRELOAD=")), "")
    return in_use(maps, preload)


def in_use(maps: str, preload: str) -> str:
    """Of the libraries in /proc/PID/maps, the one whose symbols MLX binds to."""
    files = [PurePosixPath(path) for path in dict.fromkeys(_LIBRARY.findall(maps))]
    public = [file for file in files if _PRIVATE not in file.name]
    kinds = {_kind(entry) for entry in re.split("[ :]", preload)} - {""}
    chosen = [file for file in public if _kind(str(file)) in kinds] or public
    return f"{_NAMES[_kind(str(chosen[0]))]} ({chosen[0].name})" if chosen else "unknown"


def _kind(path: str) -> str:
    """Debian's OpenBLAS also comes as a libblas.so.3 in a folder of its name: the path decides."""
    return next((kind for kind in _NAMES if kind in path), "")

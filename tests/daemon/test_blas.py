"""Which BLAS is reported: the one that a process has mapped and binds to."""

from __future__ import annotations

import os

import pytest

from sapwood.daemon import blas

LINE = "7f0000000000-7f0000001000 r-xp 00000000 fe:00 123    {}\n"
WHEEL = "/venv/lib/python3.11/site-packages/mlx_cpu.libs/libblas-bd8a282c.so.3.10.0"
NUMPY = "/venv/lib/python3.11/site-packages/numpy.libs/libscipy_openblas64_-abc.so"
DEBIAN = "/usr/lib/x86_64-linux-gnu/openblas-pthread/libopenblasp-r0.3.21.so"
DEBIAN_AS_BLAS = "/usr/lib/x86_64-linux-gnu/openblas-pthread/libblas.so.3"


@pytest.mark.parametrize(
    ("mapped", "preload", "name"),
    [
        ([WHEEL], "", "reference BLAS (libblas-bd8a282c.so.3.10.0)"),
        ([NUMPY, WHEEL], "", "reference BLAS (libblas-bd8a282c.so.3.10.0)"),
        ([DEBIAN, WHEEL], "libopenblas.so.0", "OpenBLAS (libopenblasp-r0.3.21.so)"),
        ([WHEEL, DEBIAN], "/usr/lib/libopenblas.so.0", "OpenBLAS (libopenblasp-r0.3.21.so)"),
        ([WHEEL], "libopenblas.so.0", "reference BLAS (libblas-bd8a282c.so.3.10.0)"),
        ([DEBIAN_AS_BLAS], "", "OpenBLAS (libblas.so.3)"),
        (["/usr/lib/libc.so.6"], "", "unknown"),
    ],
)
def test_the_library_that_answers_is_named(mapped: list[str], preload: str, name: str) -> None:
    maps = "".join(LINE.format(path) for path in mapped for _ in range(2))
    assert blas.in_use(maps, preload) == name


def test_a_process_that_is_gone_has_an_unknown_blas() -> None:
    assert blas.loaded(pid=2**30, platform="linux") == "unknown"


def test_apple_has_its_own() -> None:
    assert blas.loaded(os.getpid(), platform="darwin") == "Accelerate"


def test_a_preload_that_is_there_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.util.find_library", lambda name: f"lib{name}.so.0")
    given = {"PATH": "/bin", "LD_PRELOAD": "libmine.so"}
    assert blas.environment(given, "linux") == given
    assert blas.environment({"PATH": "/bin"}, "linux") == {
        "PATH": "/bin",
        "LD_PRELOAD": "libopenblas.so.0",
    }
    assert blas.environment({"PATH": "/bin"}, "darwin") == {"PATH": "/bin"}


def test_without_openblas_nothing_is_preloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    assert blas.environment({"PATH": "/bin"}, "linux") == {"PATH": "/bin"}

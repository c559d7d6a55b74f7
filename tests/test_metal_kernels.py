"""The macOS wheel of the locked mlx has the kernels that we rely on, and a lost one is noticed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.metal_kernels import (
    COMPILED_LATER,
    KERNELS,
    Missing,
    download,
    kernel_names,
    locked_version,
    missing_kernels,
    patterns,
    read_wheel,
)


def written(name: str) -> bytes:
    """One function as a metallib's directory has it, among other tags."""
    text = name.encode() + b"\0"
    return b"TYPE\1\0\2NAME" + len(text).to_bytes(2, "little") + text + b"HASH\x20\0"


def test_names_are_read_from_the_directory_whole() -> None:
    """However long; text elsewhere in the library is none."""
    names = ("rmsbfloat16", "rms_looped" + "x" * 300)
    library = b"MTLB" + b"".join(map(written, names)) + b"rms_in_code\0"
    assert kernel_names(library) == set(names)


# One for each pattern, with what `\w+` and sets of digits stand for.
ALL = frozenset(
    re.sub(r"\[(\d)\d+\]", r"\1", pattern).replace(r"\w+", "x").replace(r"\w*", "")
    for pattern, _ in patterns()
)
SOURCES = "\n".join(COMPILED_LATER).encode()


def test_each_kernel_that_is_lost_is_named_with_its_reason() -> None:
    assert missing_kernels(ALL, SOURCES) == []
    lost = "sdpa_vector_bfloat16_t_256_256"
    # A longer name is another kernel.
    names = ALL - {lost} | {lost + "_tk1"}
    assert missing_kernels(names, SOURCES) == [Missing(lost, KERNELS["sdpa_vector_{type}_256_256"])]
    short = SOURCES.replace(b"scatter_impl", b"scatter")
    (missing,) = missing_kernels(ALL, short)
    assert missing.why == "K/V that is written into the pools"


def test_every_packing_that_we_promise_is_looked_for() -> None:
    sought = {pattern for pattern, _ in patterns() if "_gather_qmv_fast_bfloat16_t" in pattern}
    affine = [f"affine_gather_qmv_fast_bfloat16_t_gs_{g}_b_{b}" for g in (32, 128) for b in (2, 8)]
    others = [f"{how}_gather_qmv_fast_bfloat16_t_gs_{size}" for how, size in (
        ("mxfp4", "32_b_4"), ("mxfp8", "32_b_8"), ("nvfp4", "16_b_4"),
    )]  # fmt: skip
    assert sought >= {*affine, *others}
    assert not any("{" in pattern for pattern, _ in patterns())


@pytest.mark.long
def test_the_locked_wheel_has_them_all(tmp_path: Path) -> None:
    """Needs a package index: skipped, with what pip says, where there is none."""
    try:
        wheel = download(locked_version(), tmp_path)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the macOS wheel cannot be had: {error.stderr.strip().splitlines()[-1]}")
    names, library = read_wheel(wheel)
    assert len(names) > 10_000
    assert missing_kernels(names, library) == []

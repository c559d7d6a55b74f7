"""RMS norms of a CPU: mlx's bits in a quarter of its operations, whoever else is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from sapwood.cache.attention_routes import CPU_KERNELS, Kernels
from sapwood.model import norms
from sapwood.model.norms import CpuNorm, RmsNorm, norm_with
from tests.model.hollow import METAL, VIEWS, nodes

EPS = 1e-6
# Rows of few numbers and of many, heads, and half precision.
SHAPES = [(1, 64), (3, 8, 32), (16, 256), (33, 64), (40, 96)]
FOLLOWING = ["", "residual", "residual, scale"]


def normal(*shape: int, dtype: mx.Dtype = mx.float32) -> mx.array:
    made = mx.random.normal(shape, key=mx.random.key(sum(shape))).astype(dtype)
    mx.eval(made)
    return made


def following(names: str, shape: tuple[int, ...], dtype: mx.Dtype) -> list[mx.array]:
    return (
        [normal(*shape, dtype=dtype), normal(1, dtype=dtype)][: len(names.split(", "))]
        if names
        else []
    )


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("names", FOLLOWING)
def test_it_has_mlxs_own_bits(dtype: mx.Dtype, shape: tuple[int, ...], names: str) -> None:
    size = shape[-1]
    weight, rows = normal(size, dtype=dtype), normal(*shape, dtype=dtype)
    then = following(names, shape, dtype)
    found = norm_with(weight, EPS, size, CPU_KERNELS)(rows, *then)
    expected = mx.fast.rms_norm(rows, weight, EPS)
    if then:
        expected = then[0] + expected
    if len(then) > 1:
        expected = expected * then[1]
    assert found.dtype == dtype
    assert mx.array_equal(found, expected)


def test_without_a_weight_it_is_mlxs_too() -> None:
    rows = normal(3, 8, 32)
    found = norm_with(None, EPS, 32, CPU_KERNELS)(rows)
    assert mx.array_equal(found, mx.fast.rms_norm(rows, None, EPS))


@pytest.mark.parametrize("names", FOLLOWING)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_a_rows_bits_are_its_own(dtype: mx.Dtype, names: str) -> None:
    """However many others there are, and so whether its root is made apart."""
    rows, norm = (
        normal(64, 256, dtype=dtype),
        norm_with(normal(256, dtype=dtype), EPS, 256, CPU_KERNELS),
    )
    then = following(names, (64, 256), dtype)
    together = norm(rows, *then)
    for row in (0, 31, 63):
        own = [each if each.size == 1 else each[row : row + 1] for each in then]
        assert mx.array_equal(norm(rows[row : row + 1], *own), together[row : row + 1])


@pytest.mark.parametrize(("many", "kernels_most"), [(False, 4), (True, 5)])
def test_it_is_few_operations(
    many: bool, kernels_most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norms, "_MANY", 0 if many else 1 << 30)
    rows, residual, scale = normal(4, 64), normal(4, 64), normal(1)

    def kernels(made: Any) -> int:
        return sum(n for name, n in nodes([made], tmp_path).items() if name not in VIEWS)

    ours = kernels(CpuNorm(normal(64), EPS, 64)(rows, residual, scale))
    theirs = kernels((residual + mx.fast.rms_norm(rows, normal(64), EPS)) * scale)
    assert ours <= kernels_most < theirs / 1.5


@pytest.mark.parametrize(("kernels", "kind"), [(CPU_KERNELS, CpuNorm), (METAL, RmsNorm)])
def test_a_gpu_keeps_its_kernel(kernels: Kernels, kind: type[RmsNorm]) -> None:
    assert type(norm_with(normal(64), EPS, 64, kernels)) is kind

"""What mlx tells of each of its backends: memory to take by default, kernels of attention."""

from __future__ import annotations

import os
import platform
from typing import Any

import mlx.core as mx
import pytest

from sapwood.cache.attention_routes import Kernels
from sapwood.model import device

HOST = 64 << 30
# As mlx 0.32 tells of them: Metal's keys from its metal backend, CUDA's from its cuda one.
METAL = {
    "device_name": "Apple M3 Ultra",
    "memory_size": 96 << 30,
    "resource_limit": 499_000,
    "max_recommended_working_set_size": 72 << 30,
}
CUDA = {"device_name": "NVIDIA H100", "total_memory": 80 << 30, "free_memory": 3 << 30}
CPU = {"device_name": "AMD EPYC", "architecture": "x86_64"}


@pytest.mark.parametrize(
    ("kind", "info", "expected"),
    [
        (mx.gpu, METAL, (72 << 30) * 85 // 100),
        (mx.gpu, CUDA, 72 << 30),
        (mx.gpu, {"device_name": "another"}, HOST // 2),
        (mx.cpu, CPU, HOST // 2),
        (mx.cpu, CUDA, HOST // 2),
    ],
)
def test_the_budget_is_of_the_memory_that_arrays_lie_in(
    kind: Any, info: dict[str, Any], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(kind))
    monkeypatch.setattr(mx, "device_info", lambda: info)
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": HOST // 4096}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    assert device.memory_budget_bytes() == expected


@pytest.mark.parametrize(
    ("architecture", "macos", "dtype", "expected"),
    [
        ("applegpu_g13g", "26.3", mx.bfloat16, Kernels("metal")),  # M1
        ("applegpu_g15d", "26.3", mx.bfloat16, Kernels("metal", large=True)),  # M3 Ultra
        ("applegpu_g16s", "14.6.1", mx.bfloat16, Kernels("metal", large=True)),  # M4 Max
        ("applegpu_g17g", "26.2", mx.bfloat16, Kernels("metal", matrix_units=True)),  # M5
        ("applegpu_g17g", "26.1.2", mx.bfloat16, Kernels("metal")),
        ("applegpu_g17g", "26.2", mx.float32, Kernels("metal")),
        ("applegpu_g17s", "27.0", mx.float16, Kernels("metal", large=True, matrix_units=True)),
        ("another", "", mx.bfloat16, Kernels("metal")),
    ],
)
def test_attention_is_laid_out_for_the_gpu_at_hand(
    architecture: str,
    macos: str,
    dtype: mx.Dtype,
    expected: Kernels,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx, "device_info", lambda: {"architecture": architecture})
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(platform, "mac_ver", lambda: (macos, ("", "", ""), ""))
    assert device.attention_kernels(dtype) == expected


def test_other_devices_have_kernels_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    assert device.attention_kernels(mx.bfloat16) == Kernels("cuda")
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    assert device.attention_kernels(mx.bfloat16) == Kernels("cpu")


@pytest.mark.parametrize(
    ("kind", "info", "page_bytes", "buffers_max", "late"),
    [
        (mx.gpu, METAL, 16_384, 499_000, 10),
        (mx.gpu, CUDA, 16_384, 0, 10),
        (mx.cpu, CPU, 1, 0, 0),
        (mx.cpu, METAL, 1, 0, 0),
    ],
)
def test_pages_buffers_and_late_frees_are_counted_as_the_device_counts_them(
    kind: Any,
    info: dict[str, Any],
    page_bytes: int,
    buffers_max: int,
    late: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(kind))
    monkeypatch.setattr(mx, "device_info", lambda: info)
    assert (device.page_bytes(), device.buffers_max()) == (page_bytes, buffers_max)
    assert device.late_operations() == late


def test_on_a_gpu_mlx_keeps_within_the_budget_what_a_step_has_reserved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[tuple[str, int]] = []
    for name in ("set_memory_limit", "set_cache_limit", "set_wired_limit"):
        monkeypatch.setattr(mx, name, lambda n, name=name: told.append((name, n)))
    monkeypatch.setattr(mx, "device_info", lambda: METAL)
    device.bound(1000, 20)
    limit = device.CacheLimit(20)
    for _ in range(2):
        assert limit.follow(500, 0) == (mx.get_active_memory(), mx.get_cache_memory())
    assert told == [("set_cache_limit", 20)] * 2, "a CPU keeps what it kept, and is told it once"
    limit.follow(5, 7)
    assert told.pop() == ("set_cache_limit", 12), "and no more than nobody else has"
    assert not device.can_wire()
    told.clear()
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    device.bound(1000, 20)
    for workspace_bytes, free_bytes in ((500, 0), (0, 500), (30, 0)):
        limit.follow(workspace_bytes, free_bytes)
    device.wire(1000)
    device.wire(100 << 30)
    assert told == [
        ("set_cache_limit", 20),
        ("set_memory_limit", 1000),
        ("set_cache_limit", 500),
        ("set_cache_limit", 20),
        ("set_cache_limit", 30),
        ("set_wired_limit", 1000),
        ("set_wired_limit", 72 << 30),
    ]


@pytest.mark.parametrize(
    ("kind", "core", "by_columns"),
    [
        (mx.cpu, "SkylakeX", {(64, 64), (128, 64), (64, 4096)}),
        (mx.cpu, "", {(64, 64), (128, 64), (64, 4096)}),
        (mx.cpu, "Zen", {(64, 64), (128, 64), (4096, 64)}),
        (mx.gpu, "Zen", set()),
    ],
)
def test_weights_are_read_as_this_blas_does_it_fastest(
    kind: mx.DeviceType,
    core: str,
    by_columns: set[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(kind))
    monkeypatch.setattr(device, "_openblas_core", lambda: core)
    shapes = [(64, 64), (128, 64), (4096, 64), (64, 4096)]
    assert {shape for shape in shapes if device.reads_columns(*shape)} == by_columns


@pytest.mark.parametrize(
    ("core", "shape", "fills"),
    [
        ("Zen", (1024, 512), True),
        ("Haswell", (512, 1024), True),
        ("Zen", (1024, 511), False),
        ("SkylakeX", (1 << 14, 1 << 10), False),
        ("", (1 << 14, 1 << 10), False),
    ],
)
def test_tiles_are_filled_of_wide_weights_where_it_was_measured(
    core: str, shape: tuple[int, int], fills: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    monkeypatch.setattr(device, "_openblas_core", lambda: core)
    assert device.fills_tiles(*shape) == fills
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    assert not device.fills_tiles(*shape)


def test_a_tile_with_few_rows_in_it_stays_as_it_is() -> None:
    found = {rows: rows + device.rows_missing(rows) for rows in (1, 3, 4, 15, 16, 19, 20, 44, 47)}
    assert found == {1: 1, 3: 3, 4: 16, 15: 16, 16: 16, 19: 19, 20: 32, 44: 48, 47: 48}
    assert not any(device.rows_missing(rows) for rows in range(48, 300))

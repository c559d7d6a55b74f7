"""How much memory a daemon takes by default, on each backend that mlx has."""

from __future__ import annotations

import os
from typing import Any

import mlx.core as mx
import pytest

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
    ("kind", "info", "page_bytes", "buffers_max"),
    [
        (mx.gpu, METAL, 16_384, 499_000),
        (mx.gpu, CUDA, 16_384, 0),
        (mx.cpu, CPU, 1, 0),
        (mx.cpu, METAL, 1, 0),
    ],
)
def test_pages_and_buffers_are_counted_as_the_device_counts_them(
    kind: Any,
    info: dict[str, Any],
    page_bytes: int,
    buffers_max: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(kind))
    monkeypatch.setattr(mx, "device_info", lambda: info)
    assert (device.page_bytes(), device.buffers_max()) == (page_bytes, buffers_max)


def test_on_a_gpu_mlx_keeps_within_the_budget_what_a_step_has_reserved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[tuple[str, int]] = []
    for name in ("set_memory_limit", "set_cache_limit", "set_wired_limit"):
        monkeypatch.setattr(mx, name, lambda n, name=name: told.append((name, n)))
    monkeypatch.setattr(mx, "device_info", lambda: METAL)
    device.bound(1000, 20)
    assert device.follow(500, 20) == mx.get_active_memory()
    assert told == [("set_cache_limit", 20)], "a CPU keeps what it kept"
    assert not device.can_wire()
    told.clear()
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    device.bound(1000, 20)
    for workspace_bytes in (500, 0):
        device.follow(workspace_bytes, 20)
    device.wire(1000)
    device.wire(100 << 30)
    assert told == [
        ("set_cache_limit", 20),
        ("set_memory_limit", 1000),
        ("set_cache_limit", 500),
        ("set_cache_limit", 20),
        ("set_wired_limit", 1000),
        ("set_wired_limit", 72 << 30),
    ]

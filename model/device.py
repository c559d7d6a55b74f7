"""What the model runs on: its name, its attention kernels, its work in parts, and the memory that a
daemon takes by default.

- On Metal the driver's own recommendation for a working set, past which it begins to page.
- On CUDA nine tenths of the device's own memory: its context, kernels and libraries live there too,
  and it is not the host's.
- On a CPU half of physical memory: the rest of the machine lives there too.
- A GPU waits for the host that builds its graph, so it gets it in parts. MLX's CPU backend computes
  on cores that the host needs as well: parts only cost it.
"""

from __future__ import annotations

import os
import platform
import re

import mlx.core as mx

from sapwood.cache.attention_routes import CPU_KERNELS, Kernels

# Apple's GPUs have matrix units from this generation on, and from macOS 26.2 on MLX uses them.
MATRIX_UNITS_GENERATION = 17
MATRIX_UNITS_MACOS = (26, 2)
# Some 200 kernels: a few command buffers of Metal's, of which ten may be under way.
_LAYERS_PER_PART = 8


def name() -> str:
    """Such as "Apple M3 Ultra" or "cpu"."""
    if mx.default_device() == mx.Device(mx.cpu):
        return "cpu"
    return str(mx.device_info().get("device_name", "gpu"))


def attention_kernels(dtype: mx.Dtype) -> Kernels:
    """What attention over K/V of `dtype` is laid out for here."""
    if mx.default_device() == mx.Device(mx.cpu):
        return CPU_KERNELS
    if not mx.metal.is_available():
        return Kernels("cuda")
    # Such as applegpu_g17s: generation, and d or s for two dies of the kind or one large one.
    architecture = str(mx.device_info().get("architecture", ""))
    generation = re.fullmatch(r"applegpu_g(\d+)[a-z]", architecture)
    modern = generation is not None and int(generation[1]) >= MATRIX_UNITS_GENERATION
    halves = dtype.size == 2  # float32 would need TF32, which a user may switch off
    return Kernels(
        "metal",
        large=architecture.endswith(("d", "s")),
        matrix_units=modern and halves and _macos() >= MATRIX_UNITS_MACOS,
    )


def _macos() -> tuple[int, ...]:
    return tuple(int(part) for part in platform.mac_ver()[0].split(".") if part.isdigit())


def layers_per_part() -> int:
    """How many layers of a forward are handed over together; 0: all of them."""
    return 0 if mx.default_device() == mx.Device(mx.cpu) else _LAYERS_PER_PART


def bound_cache(bytes_max: int) -> None:
    """How much of what was freed MLX keeps for reuse: no ledger knows of it without a bound."""
    mx.set_cache_limit(bytes_max)


def leave_thread() -> None:
    """Free what MLX keeps for the calling thread, which evaluates nothing afterwards.

    Its cache of compiled functions holds Python objects. Left to the thread's own end, which `join`
    does not wait for, they would be freed with the interpreter half gone, and abort the process.
    """
    mx.clear_streams()


def memory_budget_bytes() -> int:
    """The budget, weights included, unless --memory says another."""
    if mx.default_device() != mx.Device(mx.cpu):
        info = mx.device_info()
        if recommended := info.get("max_recommended_working_set_size"):
            return int(recommended)
        if total := info.get("total_memory"):
            return int(total) * 9 // 10
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2

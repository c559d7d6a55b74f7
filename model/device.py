"""What the model runs on: its name, its attention kernels, its work in parts, how it counts memory,
and how much of it a daemon takes by default.

- On Metal 85 % of the driver's recommendation for a working set, past which it begins to page: the
  driver's own and other programs need room too.
- On CUDA nine tenths of the device's own memory: its context, kernels and libraries live there too,
  and it is not the host's.
- On a CPU half of physical memory: the rest of the machine lives there too.
- A GPU waits for the host that builds its graph, so it gets it in parts. MLX's CPU backend computes
  on cores that the host needs as well: parts only cost it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
from functools import cache

import mlx.core as mx

from sapwood.cache.attention_routes import CPU_KERNELS, Kernels

# Apple's GPUs have matrix units from this generation on, and from macOS 26.2 on MLX uses them.
MATRIX_UNITS_GENERATION = 17
MATRIX_UNITS_MACOS = (26, 2)
GPU_PAGE_BYTES = 16 * 1024  # of MLX's allocators, Metal's and CUDA's
# How many command buffers MLX lets be under way. One is closed when its operations' inputs are so
# many bytes, and frees them when all of it is done.
COMMAND_BUFFERS_MAX, COMMAND_BUFFER_BYTES = 10, 50 << 20
# Of OpenBLAS those with kernels for AVX2; more inputs than so many times the outputs they read
# faster by rows. All others do so with more outputs than so many times the inputs.
_HASWELL_CORES, _INPUTS_MOST, _OUTPUTS_MOST = {"Haswell", "Zen"}, 32, 2
# Rows that they take in one go, from how many of the last tile on, below how many rows, and of how
# large a weight filling it saves time.
_FILLED_ROWS, _FILLED_ROWS_MIN, _FILLED_ROWS_MAX, _FILLED_SIZE_MIN = 16, 4, 48, 1 << 19
# Some 200 kernels: a few command buffers of Metal's.
_LAYERS_PER_PART = 8


def name() -> str:
    """Such as "Apple M3 Ultra" or "cpu"."""
    if _is_cpu():
        return "cpu"
    return str(mx.device_info().get("device_name", "gpu"))


def attention_kernels(dtype: mx.Dtype) -> Kernels:
    """What attention over K/V of `dtype` is laid out for here."""
    if _is_cpu():
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


def reads_columns(outputs: int, inputs: int) -> bool:
    """Whether products read a plain float32 weight [outputs, inputs] faster by columns.

    A CPU's BLAS then takes a half to nine tenths of the time for most, with any number of rows; but
    more with AVX-512 where there are many more outputs than inputs, and without it where there are
    very few. A GPU's kernels read rows.
    """
    if not _is_cpu():
        return False
    if _openblas_core() in _HASWELL_CORES:
        return inputs <= _INPUTS_MOST * outputs
    return outputs <= _OUTPUTS_MOST * inputs


def fills_tiles(outputs: int, inputs: int) -> bool:
    """Whether products with a plain float32 weight [outputs, inputs] want `rows_missing`.

    Of a small one padding takes as long as it saves; of other BLAS nothing was measured.
    """
    wide = outputs * inputs >= _FILLED_SIZE_MIN
    return wide and _is_cpu() and _openblas_core() in _HASWELL_CORES


def rows_missing(rows: int) -> int:
    """How many rows of zeros more make such a product quicker: up to the end of a tile.

    OpenBLAS' kernels for AVX2 take 12 rows of a wide weight in 6.0 ms and 16 in 3.5, 28 in 7.6 and
    32 in 5.0. A tile with few rows in it is quicker as it is.
    """
    in_tile = rows % _FILLED_ROWS
    return _FILLED_ROWS - in_tile if in_tile >= _FILLED_ROWS_MIN and rows < _FILLED_ROWS_MAX else 0


@cache
def _openblas_core() -> str:
    """Whose kernels OpenBLAS computes with here, such as "Zen"; "" of another BLAS."""
    try:
        asked = ctypes.CDLL(None).openblas_get_corename
    except (OSError, AttributeError):
        return ""
    asked.restype = ctypes.c_char_p
    return (asked() or b"").decode()


def layers_per_part() -> int:
    """How many layers of a forward are handed over together; 0: all of them."""
    return 0 if _is_cpu() else _LAYERS_PER_PART


def bound(budget_bytes: int, cache_bytes: int) -> None:
    """What MLX keeps of freed memory: `cache_bytes` at most, and on a GPU all within the budget.

    There its cache gives way, and what is under way is waited for, before more is taken.
    """
    mx.set_cache_limit(cache_bytes)
    if not _is_cpu():
        mx.set_memory_limit(budget_bytes)


class CacheLimit:
    """What MLX keeps of freed memory, step by step."""

    def __init__(self, cache_bytes: int) -> None:
        self._cache_bytes, self._told = cache_bytes, -1

    def follow(self, workspace_bytes: int, free_bytes: int) -> tuple[int, int]:
        """Bytes that arrays hold now, and that MLX keeps for reuse beside them.

        On a GPU it keeps as much as a step has reserved, and cache_bytes at least: what a step
        needs beyond it would be asked of the driver anew in every step. Nowhere does it keep more
        than there is beside weights, slots and tree.
        """
        least = self._cache_bytes
        kept = least if _is_cpu() else max(workspace_bytes, least)
        limit = min(kept, workspace_bytes + free_bytes)
        if limit != self._told:  # telling it takes longer than asking for both numbers
            mx.set_cache_limit(limit)
            self._told = limit
        return int(mx.get_active_memory()), int(mx.get_cache_memory())


def shares_host_memory() -> bool:
    """Whether its memory is the process's as well: a CPU's, and Metal's, but not CUDA's."""
    return _is_cpu() or bool(mx.metal.is_available())


def can_wire() -> bool:
    """Whether memory can be kept resident here: Metal's can."""
    return not _is_cpu() and bool(mx.metal.is_available())


def wire(bytes_max: int) -> None:
    """Keep up to so many bytes of arrays resident, and no more than the system lets anybody."""
    most = int(mx.device_info()["max_recommended_working_set_size"])
    mx.set_wired_limit(min(bytes_max, most))


def leave_thread() -> None:
    """Free what MLX keeps for the calling thread, which evaluates nothing afterwards.

    Its cache of compiled functions holds Python objects. Left to the thread's own end, which `join`
    does not wait for, they would be freed with the interpreter half gone, and abort the process.
    """
    mx.clear_streams()


def page_bytes() -> int:
    """What a buffer is rounded up to: a page of MLX's on a GPU, nothing on a CPU."""
    return 1 if _is_cpu() else GPU_PAGE_BYTES


def reuse_bytes() -> int:
    """By how much a buffer that MLX kept may be larger than what it is handed out for.

    By less than two pages (mlx/backend/common/buffer_cache.h), so on a GPU by one at most.
    """
    return 2 * os.sysconf("SC_PAGE_SIZE") - 1 if _is_cpu() else GPU_PAGE_BYTES


def buffers_max() -> int:
    """How many buffers there may be, those that MLX keeps for reuse included; 0: nobody counts.

    Metal's limit: past it MLX raises, however much memory is free.
    """
    return 0 if _is_cpu() else int(mx.device_info().get("resource_limit", 0))


def late_operations() -> int:
    """How many large operations may be done and still hold their inputs; a CPU's hold none."""
    return 0 if _is_cpu() else COMMAND_BUFFERS_MAX


def memory_budget_bytes() -> int:
    """The budget, weights included, unless --memory says another."""
    if not _is_cpu():
        info = mx.device_info()
        if recommended := info.get("max_recommended_working_set_size"):
            return int(recommended) * 85 // 100
        if total := info.get("total_memory"):
            return int(total) * 9 // 10
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _is_cpu() -> bool:
    return bool(mx.default_device() == mx.Device(mx.cpu))

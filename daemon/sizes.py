"""Sizes in bytes as people write and read them."""

from __future__ import annotations

import re
from typing import Any

from sapwood.daemon.errors import UsageError

_KIB = 1024
_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{suffix}": base**power
    for suffix, base in (("iB", 1024), ("B", 1000))
    for power, prefix in enumerate("KMGT", start=1)
}
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", re.ASCII)


def parse_size(value: Any) -> int | None:
    """Bytes of `8GiB`, `500MB` or a plain number; None for None. Raises UsageError."""
    if value is None:
        return None
    match = _MEMORY.fullmatch(str(value))
    if isinstance(value, bool) or match is None or match[2] not in _UNITS:
        raise UsageError(f"{value!r} is not a size like 8GiB or 500MB")
    size = int(float(match[1]) * _UNITS[match[2]])
    if size == 0:
        raise UsageError("a size must be more than 0")
    return size


def format_bytes(count: float) -> str:
    """Three digits and a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < _KIB:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= _KIB
    return f"{count:.1f} TiB"

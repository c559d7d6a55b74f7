"""Sizes in bytes, times and plain numbers, as people write and read them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from sapwood.daemon.errors import UsageError

_BINARY = {"B": 1} | {f"{prefix}iB": 1024**n for n, prefix in enumerate("KMGT", start=1)}
# Written in any case. A bare letter means what it means of memory everywhere: 8G are 8 GiB.
_UNITS = {"": 1, "b": 1} | {
    f"{prefix}{suffix}": base**power
    for suffix, base in (("", 1024), ("ib", 1024), ("b", 1000))
    for power, prefix in enumerate("kmgt", start=1)
}
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", re.ASCII)
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)", re.ASCII)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_size(value: Any) -> int | None:
    """Bytes of `8GiB`, `8G`, `500MB` or a plain number; None for None. Raises UsageError."""
    if value is None:
        return None
    match = _MEMORY.fullmatch(str(value))
    if isinstance(value, bool) or match is None or match[2].lower() not in _UNITS:
        raise UsageError(f"{value!r} is not a size like 8GiB or 500MB")
    size = int(float(match[1]) * _UNITS[match[2].lower()])
    if size == 0:
        raise UsageError("a size must be more than 0")
    return size


def format_bytes(count: float) -> str:
    """Three digits and a binary unit."""
    return format_in(unit_of(count), count)


def unit_of(count: float) -> str:
    """The largest binary unit of which `count` bytes are at least one; B for none."""
    fitting = [unit for unit, size in _BINARY.items() if count >= size]
    return fitting[-1] if fitting else "B"


def format_in(unit: str, count: float, rounded: Callable[[float], int] = round) -> str:
    """`count` bytes in a unit of unit_of's: numbers that are compared are all in one.

    rounded: such as math.ceil for what is the least that does, so that it does as it is shown.
    """
    size = _BINARY[unit]
    if size == 1:
        return f"{rounded(count)} {unit}"
    return f"{rounded(10 * count / size) / 10:.1f} {unit}"


def parse_time(text: str) -> float:
    """Seconds of `90`, `1.5h`, `30m` or `7d`. Raises ValueError."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError
    return float(match[1]) * _SECONDS[match[2]]


parse_time.__name__ = "time like 90, 30m, 12h or 7d"  # argparse puts it into its message


def unsigned(bits: int) -> Callable[[str], int]:
    """Reads what the wire can carry; what the model allows is the daemon's to say."""

    def parse(text: str) -> int:
        value = int(text)
        if not 0 <= value < 1 << bits:
            raise ValueError
        return value

    parse.__name__ = f"{bits}-bit number"  # argparse puts it into its message
    return parse

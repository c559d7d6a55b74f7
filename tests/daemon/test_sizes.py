"""Sizes as people read them; how they write them is tested with the configuration."""

from __future__ import annotations

import math

from sapwood.daemon.sizes import format_bytes, format_in, unit_of


def test_bytes() -> None:
    sizes = (0, 1023, 1024, 1536, 1 << 20, 5 << 30, 3 << 40)
    assert [format_bytes(size) for size in sizes] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 KiB",
        "1.0 MiB",
        "5.0 GiB",
        "3.0 TiB",
    ]


def test_bytes_in_one_unit() -> None:
    """What is compared has one unit, and what is needed is not rounded to less."""
    gib = unit_of(20 << 30)
    assert (gib, unit_of(0), unit_of(1023), unit_of(1024)) == ("GiB", "B", "B", "KiB")
    assert [format_in(gib, n << 20) for n in (0, 512, 20 << 10)] == [
        "0.0 GiB",
        "0.5 GiB",
        "20.0 GiB",
    ]
    assert format_in("MiB", (3 << 20) + 1, math.ceil) == "3.1 MiB"
    assert format_in("MiB", (4 << 20) - 1, math.floor) == "3.9 MiB"
    assert format_in("B", 8, math.ceil) == "8 B"

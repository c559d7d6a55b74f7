"""Sizes as people read them; how they write them is tested with the configuration."""

from __future__ import annotations

from sapwood.daemon.sizes import format_bytes


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

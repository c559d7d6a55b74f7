"""Takes SMG's arguments as they are."""

from __future__ import annotations


def parse_router_args(args: list[str]) -> list[str]:
    """Kept for Router, in tests/daemon/gateway/stand_in/smg/router.py."""
    return args

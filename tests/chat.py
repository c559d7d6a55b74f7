"""Conversations as chat templates take them."""

from __future__ import annotations

from typing import Any


def turns(*said: tuple[str, str]) -> list[dict[str, Any]]:
    """Messages of (role, content)."""
    return [{"role": role, "content": content} for role, content in said]

"""Texts of several lines: what stands between triple quotes."""

from __future__ import annotations

QUOTES = '"""'


def is_open(text: str) -> bool:
    """Whether it began with quotes that have no end yet."""
    text = text.strip()
    if not text.startswith(QUOTES):
        return False
    return len(text) < 2 * len(QUOTES) or not text.endswith(QUOTES)


def unquoted(text: str) -> str:
    """What stands between quotes, or behind those that never end; or the text itself."""
    whole = text.strip()
    if not whole.startswith(QUOTES):
        return text
    return whole.removeprefix(QUOTES).removesuffix(QUOTES).strip("\n")

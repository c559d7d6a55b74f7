"""Values of flags, as argparse asks for them: what cannot be one is a ValueError."""

from __future__ import annotations


def interval(text: str) -> float:
    """Seconds between two looks."""
    value = float(text)
    if not 0.1 <= value <= 86400.0:
        raise ValueError
    return value


interval.__name__ = "number from 0.1 to 86400"  # argparse puts it into its message


def timeout_s(text: str) -> float | None:
    """As the client takes a timeout, so that one without end is one here, and NaN is none."""
    from sapwood.client import fields

    return fields.seconds(float(text), "timeout")

"""Values of flags, as argparse asks for them: what cannot be one is a ValueError."""

from __future__ import annotations

from collections.abc import Callable


def unsigned(bits: int) -> Callable[[str], int]:
    """What the wire can carry; what the model allows is the daemon's to say."""

    def parse(text: str) -> int:
        value = int(text)
        if not 0 <= value < 1 << bits:
            raise ValueError
        return value

    parse.__name__ = f"{bits}-bit number"  # argparse puts it into its message
    return parse


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

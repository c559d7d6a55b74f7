"""What to do about an error of a client, beside what it says; one line."""

from __future__ import annotations

from sapwood import SapwoodError, Unavailable

# How the system says that nobody listens there, in gRPC's message.
_NOBODY = ("Connection refused", "No such file or directory")


def advised(error: SapwoodError, address: str) -> str:
    """The error; where no daemon answers at the address, how to start one."""
    nobody = any(words in error.message for words in _NOBODY)
    if isinstance(error, Unavailable) and not error.reason and nobody:
        return (
            f"UNAVAILABLE: no daemon answers at {address}; "
            "`sapwood serve` starts one, --connect names another"
        )
    return str(error)

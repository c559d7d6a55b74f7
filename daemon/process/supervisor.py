"""What systemd hears of a daemon that it started: that it serves, that it lives, that it ends.

- The protocol is one datagram of text (sd_notify(3)) to the socket that NOTIFY_SOCKET names. Where
  nobody named one nothing is sent, and launchd wants to hear nothing.
- A sign of life goes out while the engine is healthy: it steps, or has nothing to do. It comes from
  the event loop, so a loop that hangs is silent too, and systemd starts another daemon.
- Nothing waits for who listens, and no message that is lost ends a daemon.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress

_SIGNS_PER_TIMEOUT = 3  # so one may come late


class Supervisor:
    """address: of its socket, "" for nobody. timeout_s: between two signs of life, 0 for none."""

    def __init__(self, address: str, timeout_s: float = 0.0) -> None:
        self._address = address
        self._timeout_s = timeout_s

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Supervisor:
        """Who started this process, by what it left in the environment."""
        address = environ.get("NOTIFY_SOCKET", "")
        microseconds = environ.get("WATCHDOG_USEC", "")
        meant = environ.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
        watches = meant and microseconds.isascii() and microseconds.isdigit()
        return cls(address, int(microseconds) / 1e6 if watches else 0.0)

    def ready(self) -> None:
        """Requests are served."""
        self._send("READY=1\nSTATUS=serves")

    def stopping(self) -> None:
        """Requests are refused from here on; those that run finish."""
        self._send("STOPPING=1\nSTATUS=drains")

    async def watch(self, is_healthy: Callable[[], bool]) -> None:
        """Signs of life, until cancelled; returns at once where nobody waits for them."""
        while self._address and self._timeout_s:
            if is_healthy():
                self._send("WATCHDOG=1")
            await asyncio.sleep(self._timeout_s / _SIGNS_PER_TIMEOUT)

    def _send(self, message: str) -> None:
        if not self._address:
            return
        name = self._address
        abstract = name.startswith("@")  # Linux's, without a file
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as outlet:
            outlet.setblocking(False)
            outlet.sendto(message.encode(), f"\0{name[1:]}" if abstract else name)

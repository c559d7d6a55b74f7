"""Signals of a daemon, from its event loop's first turn to its last.

- The handlers never change hands in a way that shows the default action: the loop's own
  (`add_signal_handler`) do, when they are removed and when the loop closes.
- A handler does nothing but wake the loop, whichever thread the signal came to.
- SIGTERM, SIGINT, SIGQUIT drain, the next one cuts the drain short. SIGHUP drains once, where there
  is a terminal to hang up; else certificates and tokens are read again, and where there are none it
  is a log line. SIGUSR1, SIGUSR2 are ignored.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sapwood.daemon import entry

_log = logging.getLogger(__name__)


@contextmanager
def heard(take: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Inside, each signal of a daemon's comes to `take` on the running loop, on the main thread."""
    numbers, loop = entry.heard_signals(), asyncio.get_running_loop()
    ours, waker = socket.socketpair()
    ours.setblocking(False)
    waker.setblocking(False)

    def read() -> None:
        for number in ours.recv(4096):
            if number in numbers:
                take(signal.Signals(number))

    loop.add_reader(ours, read)
    # The pipe before the handlers, so that what the handlers drop is in it.
    before = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    handlers = {number: signal.signal(number, _wake) for number in numbers}
    handlers |= {number: signal.signal(number, signal.SIG_IGN) for number in entry.IGNORED}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, _after(handler))
        signal.set_wakeup_fd(before)
        loop.remove_reader(ours)
        ours.close()
        waker.close()


def _wake(_number: int, _frame: object) -> None:
    """Python wrote the number into the pipe already."""


def _after(before: Any) -> Any:
    """The exit code is known: what spoke for a daemon that did not serve yet is past."""
    return signal.SIG_IGN if before is entry.before_serving else before


class Requests:
    """What signals asked of a daemon, in their order."""

    def __init__(self, drain: Callable[[], None], reload: Callable[[], bool]) -> None:
        """reload: False where there is nothing to read again."""
        self._drain = drain
        self._reload = reload
        self._has_terminal = entry.has_terminal()
        self.first: signal.Signals | None = None
        self.forced: signal.Signals | None = None

    def take(self, number: signal.Signals) -> None:
        """One more signal: the first drains, and a later forcible one cuts the drain short."""
        if number == signal.SIGHUP and not self._has_terminal:
            if not self._reload():
                _log.warning("SIGHUP: there is nothing to reload")
        elif self.first is None:
            self.first = number
            self._drain()
        elif number != signal.SIGHUP:  # a window that is closed after Ctrl-C asks for nothing new
            self.forced = self.forced or number
            self._drain()

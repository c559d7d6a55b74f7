"""The log on stderr, which never holds up whoever has something to say.

- Lines are written by a thread of their own: a stderr that nobody reads (a pipe whose reader
  stopped, a terminal that was halted) keeps that thread waiting and not the event loop.
- At most LINES_MAX wait. What comes then is dropped, and the next line that goes out says how many.
- Written to the descriptor: a thread that waits within Python's stream would hold its lock, and
  with it the process's last flush.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
from contextlib import suppress

LINES_MAX = 1000
LAST_LINES_S = 0.2  # at the end of the process, for what waits
LINE_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class LineWriter(logging.Handler):
    """Writes records to a descriptor in the background, in order."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: queue.Queue[str] = queue.Queue(LINES_MAX)
        self._dropped = 0
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Never waits. The caller is the logging module, one record at a time."""
        try:
            line = self.format(record)
            if self._dropped:
                line = f"({self._dropped} lines were dropped)\n{line}"
            self._lines.put_nowait(f"{line}\n")
            self._dropped = 0
        except queue.Full:
            self._dropped += 1

    def flush(self) -> None:
        """Until nothing waits, or LAST_LINES_S have passed."""
        until = time.monotonic() + LAST_LINES_S
        while self._lines.unfinished_tasks and time.monotonic() < until:
            time.sleep(0.005)

    def _write(self) -> None:
        while True:
            rest = self._lines.get().encode(errors="backslashreplace")
            with suppress(OSError):  # nobody is left to read it
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
            self._lines.task_done()


def log_to_stderr() -> None:
    """Warnings of everybody's; what a model leaves out is worth a line without being one."""
    # None where it was closed at the start: its number may be another file's by now. What stands
    # in for it and is no file, as in a notebook, is left to whoever put it there.
    with suppress(OSError):
        if sys.stderr is not None:
            logging.basicConfig(format=LINE_FORMAT, handlers=[LineWriter(sys.stderr.fileno())])
    logging.getLogger("sapwood.model").setLevel(logging.INFO)

"""The log on stderr, which never holds up whoever has something to say.

- Lines are written by a thread of their own: a stderr that nobody reads (a pipe whose reader
  stopped, a terminal that was halted) keeps that thread waiting and not the event loop.
- At most LINES_MAX wait. What comes then is dropped, and the next line that goes out says how many.
- Written to the descriptor: a thread that waits within Python's stream would hold its lock, and
  with it the process's last flush.
- Two forms: for people, with fields as `name=value`; or one JSON object a line, whatever a message
  holds. A record's fields are in its attribute `fields`.
- Where something is drawn on the terminal's last line, a line of the log takes its place.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

LINES_MAX = 1000
LAST_LINES_S = 0.2  # at the end of the process, for what waits
ERASED = "\r\x1b[2K"  # the line that the cursor is on
LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("human", "json")
_PLAIN = re.compile(r"[\w.:/+@,-]+", re.ASCII)


class HumanFormat(logging.Formatter):
    """One line, with the fields after the message; what a fault adds comes below."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Formatter.formatMessage, with the fields."""
        told = (f" {name}={_plain(value)}" for name, value in _fields(record).items())
        return super().formatMessage(record) + "".join(told)


class JsonFormat(logging.Formatter):
    """One JSON object: `time` (UTC), `level`, `logger`, `message`, and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Formatter.format, on one line."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {
            "time": at.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps({**line, **_fields(record)}, ensure_ascii=False, default=str)


class LineWriter(logging.Handler):
    """Writes records to a descriptor in the background, in order."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: queue.Queue[str] = queue.Queue(LINES_MAX)
        self._dropped = 0
        self.before = ""  # what each line begins with
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Never waits. The caller is the logging module, one record at a time."""
        try:
            line = self.format(record)
            if self._dropped:
                line = f"{self.format(_dropped(self._dropped))}\n{line}"
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
            line = self._lines.get()
            rest = (self.before + line).encode(errors="backslashreplace")
            with suppress(OSError):  # nobody is left to read it
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
            self._lines.task_done()


def log_to_stderr(level: str = "info", form: str = "human") -> None:
    """Ours from `level` on, other libraries' warnings. Once; later calls set the level alone."""
    # None where it was closed at the start: its number may be another file's by now. What stands
    # in for it and is no file, as in a notebook, is left to whoever put it there.
    with suppress(OSError):
        if sys.stderr is not None:
            writer = LineWriter(sys.stderr.fileno())
            writer.setFormatter(JsonFormat() if form == "json" else HumanFormat())
            logging.basicConfig(handlers=[writer])
    logging.getLogger().setLevel(max(logging.WARNING, _number(level)))
    logging.getLogger("sapwood").setLevel(_number(level))


def log_over(bar: bool) -> None:
    """Whether something is drawn on the terminal's last line, and is drawn again by itself."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LineWriter):
            handler.before = ERASED if bar else ""


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    found: Mapping[str, Any] = getattr(record, "fields", {})
    return found


def _plain(value: Any) -> str:
    """As it is, where nothing in it could be taken for another field or line."""
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def _dropped(count: int) -> logging.LogRecord:
    told = f"{count} lines were dropped"
    return logging.LogRecord(__name__, logging.WARNING, __file__, 0, told, None, None)

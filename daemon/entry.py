"""What holds of a command's process before its imports and after its last line.

- Imports nothing of ours and little of Python's: it comes first, imports take a second or more,
  and a signal that finds the default action there ends the process without a word. What comes
  before is Python's own start, some 50 ms, or many times that on a busy machine: that window is
  nobody's to close.
- Until there is something to give back, a signal ends the process at once, by `os._exit`: an
  exception from the middle of an import is swallowed or renamed by what is being imported.
- Once the exit code of `serve` is known no signal changes it. What the last flush of any command
  cannot write is dropped, where Python would put 120 and a traceback.
- No process of ours is left to Python's teardown: a daemon thread of a library that comes for the
  interpreter then is ended through C++ frames, which aborts (seen: now and then, after gRPC).
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn, TextIO

FORCIBLE = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)  # a second one cuts a drain short
IGNORED = (signal.SIGUSR1, signal.SIGUSR2)
INTERRUPTED = 130  # 128 and SIGINT, as shells have it


def begin(serves: bool) -> None:
    """The first call of a process of ours: from here on each signal has an answer."""
    if serves:
        gc.disable()  # imports make what stays: to look through it took a fifteenth of a start
        for number in heard_signals():
            signal.signal(number, before_serving)
        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)
    elif signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)


def all_imported() -> None:
    """`serve` has imported what it is made of: it is looked through no more."""
    gc.freeze()
    gc.enable()


def heard_signals() -> list[signal.Signals]:
    """What `serve` answers to. Whoever started it with nohup wants no hang-up to reach it."""
    hears = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return [*FORCIBLE, *([signal.SIGHUP] if hears else [])]


def has_terminal() -> bool:
    """Whether a hang-up can be a terminal's. To be asked early: one that hung up is none."""
    with suppress(OSError):
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
        return True
    return os.isatty(0)


def before_serving(number: int, _frame: object) -> None:
    """The handler while `serve` has nothing to drain yet."""
    name = signal.Signals(number).name
    if number == signal.SIGHUP and not has_terminal():
        _write_line(f"{name}: there is nothing to reload")
        return
    _write_line(f"{name} before the daemon served")
    os._exit(1)


def _interrupted(_number: int, _frame: object) -> NoReturn:
    end_interrupted("interrupted")


def end_interrupted(text: str) -> NoReturn:
    """Ctrl-C ends the process here, whatever its threads do. May be called by a handler."""
    _write_line(text)
    os._exit(INTERRUPTED)


def imported() -> None:
    """From here on Ctrl-C of a command other than `serve` is a KeyboardInterrupt, as usual."""
    if signal.getsignal(signal.SIGINT) is _interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _write_line(text: str) -> None:
    """Past Python's buffers, which the signal may have found in use."""
    with suppress(OSError):
        os.write(2, f"sapwood: {text}\n".encode())


def complain(text: str) -> None:
    """The one line that a failed command ends with; a stderr that takes none changes nothing."""
    with suppress(OSError):
        print(f"sapwood: {text}", file=sys.stderr, flush=True)


def leave(code: int) -> NoReturn:
    """The last call of a process of ours."""
    code = _settled(code)
    atexit._run_exitfuncs()  # temporary folders, logs, whoever measures
    os._exit(code)


def _settled(code: int) -> int:
    """The code to leave with, which nothing changes any more."""
    for number in (*FORCIBLE, signal.SIGHUP):
        handler = signal.getsignal(number)
        if handler is before_serving:
            signal.signal(number, signal.SIG_IGN)
        elif handler in (_interrupted, signal.default_int_handler):
            signal.signal(number, signal.SIG_DFL)  # no traceback, and a client can still be ended
    if (error := _flushed(sys.stdout)) is not None:
        # Of a reader that left, such as `head`, nobody wants to hear.
        if code == 0 and not isinstance(error, BrokenPipeError):
            complain(f"cannot write to standard output: {error.strerror}")
        code = code or 1
    _flushed(sys.stderr)
    return code


def _flushed(stream: TextIO | None) -> OSError | None:
    """Why it cannot be written, if so; then Python's own flush at exit goes to nowhere."""
    if stream is None:
        return None
    try:
        stream.flush()
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        return error
    return None

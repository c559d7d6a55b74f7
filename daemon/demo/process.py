"""A daemon of our own for the length of a phase.

- It listens on free loopback ports only and says where through its ready file.
- Whatever ends the phase, an exception or Ctrl-C included, the process is gone afterwards.
- What it wrote to stderr is kept for the message, should it fail.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sapwood.daemon.demo.errors import DemoError

STOP_S_MAX = 10.0
_POLL_S = 0.02
_LOG_LINES_SHOWN = 15


@dataclass(frozen=True, slots=True)
class DaemonProcess:
    """One that serves. address, metrics, http: HOST:PORT of gRPC, the scrape endpoint, SMG."""

    address: str
    metrics: str
    pid: int
    http: str = ""


@contextmanager
def running(
    command: Sequence[str], environ: Mapping[str, str], deadline: float
) -> Iterator[DaemonProcess]:
    """Starts `command` (of `serve`), gives the daemon once it serves, and ends it.

    deadline: of the start, in time.monotonic(). Raises DemoError if the daemon does not come up, or
    does not end as it should after the body ended well.
    """
    with tempfile.TemporaryDirectory(prefix="sapwood-demo-") as folder:
        ready, log = Path(folder, "ready.json"), Path(folder, "stderr")
        addresses = ("--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0")
        arguments = [*command, *addresses, "--ready-file", str(ready)]
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                arguments, env=environ, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr
            )
        try:
            yield _wait_ready(process, ready, deadline)
            _stop(process)
        except Exception as error:
            message = str(error) or type(error).__name__
            raise DemoError(message + _last_words(process, log)) from error
        finally:
            process.kill()
            process.wait()


def serve_command(*flags: str) -> list[str]:
    """argv of `sapwood serve` in this interpreter, for `running`."""
    return [sys.executable, "-m", "sapwood", "serve", *flags]


def _wait_ready(process: subprocess.Popen[bytes], ready: Path, deadline: float) -> DaemonProcess:
    while not ready.exists():
        if process.poll() is not None:
            raise DemoError("the daemon ended before it served")
        if time.monotonic() > deadline:
            raise DemoError("the daemon was not ready in time")
        time.sleep(_POLL_S)
    content = json.loads(ready.read_text())
    http = content.get("http", "")
    return DaemonProcess(content["grpc"][0], content["metrics"], process.pid, http)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        status = process.wait(STOP_S_MAX)
    except subprocess.TimeoutExpired:
        raise DemoError(f"the daemon still ran {STOP_S_MAX:.0f} s after SIGTERM") from None
    if status != 0:
        raise DemoError("the daemon did not end well after SIGTERM")


def _last_words(process: subprocess.Popen[bytes], log: Path) -> str:
    status = process.poll()
    ended = "" if status is None else f"\nthe daemon ended with exit code {status}"
    lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:]
    said = "".join(f"\n  {line}" for line in lines)
    return ended + (f"\nits last words:{said}" if said else "")

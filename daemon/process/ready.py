"""How the outside learns that the daemon serves: one line, and a file for programs.

- The file appears whole (written beside, then renamed) once requests are served, and goes at exit,
  unless another daemon's stands there by then.
- It lists every gRPC listener in flag order with its real port.
- That it can be written is tried before minutes of loading.
- Whoever wrote it holds a lock on it until it goes: what has none was left behind by a daemon that
  was killed. So its process id is that of the daemon, and of nobody who got the number since.
- Where nobody named one it lies beside the default socket, if it can; another daemon's stays.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from sapwood.client.address import default_socket
from sapwood.daemon.errors import StartError
from sapwood.daemon.own_files import Identity, identity_of, remove_own
from sapwood.daemon.settings.addresses import Address, TcpAddress, is_loopback


def ready_line(listeners: Sequence[Address], metrics: TcpAddress, base_url: str = "") -> str:
    """For stdout: every gRPC listener in flag order, the metrics' URL, and where HTTP begins."""
    joined = " ".join(str(address) for address in listeners)
    http = f" http {base_url}" if base_url else ""
    return f"sapwood ready: grpc {joined} metrics {metrics_url(metrics)}{http}"


def metrics_url(metrics: TcpAddress, path: str = "/metrics") -> str:
    """Beyond loopback they have TLS. path: of what is served beside them, too."""
    scheme = "http" if is_loopback(metrics.host) else "https"
    return f"{scheme}://{metrics}{path}"


def print_ready(line: str) -> None:
    """Raises StartError where standard output takes no line: whoever waits for it waits in vain."""
    try:
        print(line, flush=True)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the addresses are not text"
        raise StartError(f"cannot write the ready line to standard output: {reason}") from error


def require_stdout() -> None:
    """Raises StartError where the process was started without: `print` would say nothing."""
    if sys.stdout is None:
        raise StartError("cannot write the ready line: standard output is closed")


def default_ready_file(environ: Mapping[str, str]) -> Path:
    """Where it lies if nobody says."""
    return default_socket(environ).with_name("sapwood.json")


def is_held(descriptor: int) -> bool:
    """Whether whoever wrote this open file is still there."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def ready_path(named: Path | None, environ: Mapping[str, str]) -> Path | None:
    """Where to write: what was named, or the default place; None where that is not ours to have."""
    if named is not None:
        return named
    path = default_ready_file(environ)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        ReadyFile(path).check()
        with path.open("rb") as file:
            return None if is_held(file.fileno()) else path
    except FileNotFoundError:
        return path
    except (StartError, OSError):
        return None


class ReadyFile:
    """The file at `path`, None for no file. Its methods raise StartError, `remove` nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._ours: Identity | None = None
        self._open: int | None = None  # our lock, and so that no other file can get our inode

    def check(self) -> None:
        """Try to write, before the model is loaded, and leave nothing."""
        if self._path is not None:
            if self._path.is_dir():
                raise StartError(f"cannot write the ready file {self._path}: it is a folder")
            if self._path.exists() and not self._path.is_file():  # a device: it would be replaced
                raise StartError(f"cannot write the ready file {self._path}: it is no plain file")
            self._beside(self._path, "").unlink(missing_ok=True)

    def write(
        self, listeners: Sequence[Address], metrics: TcpAddress, **others: TcpAddress | None
    ) -> None:
        """Put the addresses where they are looked for, at once and whole. others: by name."""
        if self._path is None:
            return
        content = {
            "grpc": [str(address) for address in listeners],
            "metrics": str(metrics),
            **{name: str(address) for name, address in others.items() if address is not None},
            "pid": os.getpid(),
        }
        beside = self._beside(self._path, json.dumps(content) + "\n")
        try:
            self._open = os.open(beside, os.O_RDONLY)
            with suppress(OSError):  # a file system without locks
                fcntl.flock(self._open, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._ours = identity_of(beside)
            beside.replace(self._path)
        except OSError as error:
            raise _cannot_write(self._path, beside, error) from error

    def remove(self) -> None:
        """Remove the file while it is ours. Safe where nothing was written."""
        if self._path is not None and self._ours is not None:
            remove_own(self._path, self._ours)
        if self._open is not None:
            os.close(self._open)
            self._open = None

    def _beside(self, path: Path, text: str) -> Path:
        beside = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            beside.write_text(text)
        except OSError as error:
            raise _cannot_write(path, beside, error) from error
        return beside


def _cannot_write(path: Path, beside: Path, error: OSError) -> StartError:
    with suppress(OSError):  # what forbids to write may forbid this too
        beside.unlink(missing_ok=True)
    return StartError(f"cannot write the ready file {path}: {error.strerror}")

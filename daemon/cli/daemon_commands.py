"""`sapwood stop`: ends the daemon on this machine, by the process id in its ready file.

- The file is believed only while the daemon that wrote it holds it, and only where it is ours.
- An address that was given must be one of that daemon's.
- SIGTERM lets it drain; the command waits for its end.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

from sapwood.daemon.cli.client_commands import address_of
from sapwood.daemon.errors import StartError
from sapwood.daemon.process.ready import default_ready_file, is_held

_READY_BYTES_MAX = 1 << 16
_POLL_S = 0.05


def stop(arguments: argparse.Namespace) -> int:
    """Returns 0 once it ended. Raises StartError where there is none to end."""
    named = arguments.ready_file
    path = default_ready_file(os.environ) if named is None else Path(named).expanduser()
    content = _read_held(path)
    if arguments.connect is not None or os.environ.get("SAPWOOD_ADDRESS"):
        _require_there(address_of(arguments), content, path)
    pid = content["pid"]
    try:
        os.kill(pid, signal.SIGTERM)
    except OSError as error:
        raise StartError(f"process {pid}: {error.strerror}") from None
    patience_s = math.inf if arguments.timeout is None else arguments.timeout
    deadline = time.monotonic() + patience_s
    while _runs(pid):
        if time.monotonic() > deadline:
            raise StartError(f"process {pid} still drains after {patience_s:g} s")
        time.sleep(_POLL_S)
    print(f"stopped, process {pid}")
    return 0


def _read_held(path: Path) -> dict[str, Any]:
    """What the daemon says that holds the file. Raises StartError."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_uid != os.geteuid():
                raise StartError(f"{path} is not ours: its owner alone stops that daemon")
            if not is_held(file.fileno()):
                raise StartError(f"{path} was left behind: that daemon runs no more")
            content = json.loads(file.read(_READY_BYTES_MAX))
    except FileNotFoundError:
        raise StartError(f"no daemon of ours runs here: there is no {path}") from None
    except (OSError, ValueError):
        raise StartError(f"{path} cannot be read") from None
    pid = content.get("pid") if isinstance(content, dict) else None
    if type(pid) is not int or pid <= 1:
        raise StartError(f"{path} is no ready file")
    return dict(content)


def _require_there(address: str, content: dict[str, Any], path: Path) -> None:
    listeners = content.get("grpc", [])
    if address not in listeners:
        raise StartError(
            f"the daemon of {path} is at {', '.join(listeners)}, not at {address}; "
            "--ready-file names that of another"
        )


def _runs(pid: int) -> bool:
    """A process that ended and whose parent has not heard of it runs no more."""
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat", "rb") as file:  # Linux alone has it
            return not file.read().rpartition(b")")[2].lstrip().startswith(b"Z")
    except ProcessLookupError:
        return False
    except OSError:
        return not os.path.exists("/proc/self")

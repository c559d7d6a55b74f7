"""How the outside learns that the daemon serves: one line, and a file for programs.

- The file appears whole (written beside, then renamed) once requests are served, and goes at exit.
- It lists every gRPC listener in flag order with its real port.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sapwood.daemon.errors import StartError
from sapwood.daemon.settings.addresses import Address, TcpAddress


def ready_line(listeners: Sequence[Address], metrics: TcpAddress) -> str:
    """For stdout: every gRPC listener in flag order, and the metrics' URL."""
    joined = " ".join(str(address) for address in listeners)
    return f"sapwood ready: grpc {joined} metrics http://{metrics}/metrics"


@contextmanager
def ready_file(
    path: Path | None, listeners: Sequence[Address], metrics: TcpAddress
) -> Iterator[None]:
    """Write the file if one is wanted; remove it at the end. Raises StartError."""
    if path is None:
        yield
        return
    content = {
        "grpc": [str(address) for address in listeners],
        "metrics": str(metrics),
        "pid": os.getpid(),
    }
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps(content) + "\n")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise StartError(f"cannot write the ready file {path}: {error.strerror}") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)

"""What `install-service` writes, started as systemd would start it: by its own command alone."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_rooms import ROOT

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]
WAIT_S_MAX = 120.0


def unit(folder: Path) -> str:
    flags = ["--listen", f"unix:{folder}/s", "--metrics", "127.0.0.1:0", "--memory", "1G"]
    command = [sys.executable, "-m", "sapwood", "install-service", "--print", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(sys.platform != "linux", reason="systemd's")
def test_the_unit_serves_and_says_so(folder: Path) -> None:
    (line,) = re.findall(r"^ExecStart=(.*)$", unit(folder), re.MULTILINE)
    environ = {"HOME": str(folder), "PYTHONPATH": str(ROOT), "NOTIFY_SOCKET": f"{folder}/n"}
    environ |= {"XDG_RUNTIME_DIR": str(folder), "WATCHDOG_USEC": "3000000"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"{folder}/n")
        manager.settimeout(WAIT_S_MAX)

        def hears(word: bytes) -> None:
            while word not in manager.recv(4096).splitlines():
                pass

        started = subprocess.Popen(
            shlex.split(line), cwd="/", env=environ, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            hears(b"READY=1")
            hears(b"WATCHDOG=1")
            os.kill(started.pid, signal.SIGHUP)  # its ExecReload
            hears(b"WATCHDOG=1")
            os.kill(started.pid, signal.SIGTERM)
            hears(b"STOPPING=1")
            assert started.wait(WAIT_S_MAX) == 0
        finally:
            started.kill()
            started.communicate()

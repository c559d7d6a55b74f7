"""A daemon process of our own: found by its ready file, and gone whatever happens."""

from __future__ import annotations

import os
import sys
import time

import pytest

from sapwood.daemon.demo.errors import DemoError
from sapwood.daemon.demo.process import DaemonProcess, running

SERVE = """
import json, os, signal, sys
path = sys.argv[sys.argv.index("--ready-file") + 1]
content = {"grpc": ["127.0.0.1:7"], "metrics": "127.0.0.1:8", "pid": os.getpid()}
signal.signal(signal.SIGTERM, lambda *_: sys.exit(STATUS))
print("what it said last", file=sys.stderr, flush=True)
with open(path + ".new", "w") as file:
    json.dump(content, file)
os.rename(path + ".new", path)
while True:
    signal.pause()
"""
GOOD = [sys.executable, "-c", SERVE.replace("STATUS", "0")]
BAD_END = [sys.executable, "-c", SERVE.replace("STATUS", "3")]
BAD_START = [sys.executable, "-c", "import sys; sys.exit('no model here')"]
NEVER_READY = [sys.executable, "-c", "import time; time.sleep(60)"]


def soon() -> float:
    return time.monotonic() + 20.0


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_ready_file_says_where_it_is() -> None:
    with running(GOOD, os.environ, soon()) as daemon:
        assert daemon == DaemonProcess("127.0.0.1:7", "127.0.0.1:8", daemon.pid)
        assert exists(daemon.pid)
    assert not exists(daemon.pid)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_leaves_no_process(interruption: type[BaseException]) -> None:
    with (
        pytest.raises(interruption),
        running(GOOD, os.environ, soon()) as daemon,
    ):
        raise interruption
    assert not exists(daemon.pid)


def test_a_failure_tells_what_the_daemon_said_last() -> None:
    with (
        pytest.raises(DemoError, match=r"(?s)it broke.*what it said last"),
        running(GOOD, os.environ, soon()) as daemon,
    ):
        raise RuntimeError("it broke")
    assert not exists(daemon.pid)


def test_a_daemon_that_does_not_start_is_told_with_its_words() -> None:
    with (
        pytest.raises(DemoError, match=r"(?s)ended before it served.*code 1.*no model here"),
        running(BAD_START, os.environ, soon()),
    ):
        pytest.fail("it never served")


def test_a_daemon_that_ends_badly_fails_the_demo() -> None:
    with (
        pytest.raises(DemoError, match=r"(?s)did not end well.*exit code 3"),
        running(BAD_END, os.environ, soon()),
    ):
        pass


def test_a_daemon_that_is_never_ready_is_not_waited_for_beyond_the_deadline() -> None:
    with (
        pytest.raises(DemoError, match="not ready in time"),
        running(NEVER_READY, os.environ, time.monotonic() + 0.2),
    ):
        pytest.fail("it never served")

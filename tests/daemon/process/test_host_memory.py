"""What a process that serves keeps of freed memory, seen by the pages that the system hands out."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from typing import cast

import pytest

from sapwood.daemon.process import run
from sapwood.daemon.process.host_memory import host_bytes, peak_resident_bytes
from sapwood.daemon.process.server import Daemon
from sapwood.daemon.settings.config import Config
from sapwood.scheduler.limits import Limits

BLOCK_BYTES, ROUNDS = 12 << 20, 20
# A thread that writes and frees a block, like a step on the engine thread.
WORK = f"""
import ctypes, resource, threading
from sapwood.daemon.process.host_memory import keep_freed_memory

if KEPT:
    assert keep_freed_memory()
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p

def work():
    for size in range({BLOCK_BYTES}, {BLOCK_BYTES} + {ROUNDS} * 65536, 65536):
        block = ctypes.c_void_p(library.malloc(ctypes.c_size_t(size)))
        ctypes.memset(block, 1, size)
        library.free(block)

before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
thread = threading.Thread(target=work)
thread.start()
thread.join()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize())
"""


def handed_out_bytes(kept: bool) -> int:
    """While blocks of another size each were written and freed, one after another."""
    code = WORK.replace("KEPT", str(kept))
    return int(subprocess.check_output([sys.executable, "-c", code], timeout=60))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_a_freed_block_is_the_next_one() -> None:
    assert handed_out_bytes(kept=False) > ROUNDS * BLOCK_BYTES / 2
    assert handed_out_bytes(kept=True) < 3 * BLOCK_BYTES


@pytest.mark.anyio
async def test_it_is_kept_before_the_daemon_has_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has an arena of its own keeps it."""
    order = list[str]()

    def daemon(*_: object) -> Daemon:
        order.append("daemon")
        raise InterruptedError

    monkeypatch.setattr(run, "keep_freed_memory", lambda: order.append("kept"))
    monkeypatch.setattr(run, "Daemon", daemon)
    monkeypatch.setattr(sys, "setswitchinterval", lambda _: None)
    with pytest.raises(InterruptedError):
        await run.serve(cast("Config", None), lambda: pytest.fail("nothing is loaded"))
    assert order == ["kept", "daemon"]


@pytest.mark.parametrize(("system", "unit"), [("linux", 1024), ("darwin", 1)])
def test_the_peak_of_a_process_is_told_in_bytes(
    system: str, unit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    assert peak_resident_bytes() // unit == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_what_python_takes_follows_the_limits_and_the_vocabulary() -> None:
    less, more = Limits(queued_max=1), Limits(queued_max=3)
    assert host_bytes(more, 10) - host_bytes(less, 10) == 2 * less.mailbox_bytes_max
    assert host_bytes(less, 11) > host_bytes(less, 10)

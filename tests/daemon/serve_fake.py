"""A daemon process on the fake device: `python -m tests.daemon.serve_fake STEP_S FOLDER`.

STEP_S is the time of one step; `stuck` never ends one, `broken` raises in the first. `loading`
never ends to load, `refused` gets SIGTERM where its load fails and again in Python's teardown.
FOLDER has `c.toml`; the socket `s` and `ready.json` appear there, and `loading` once the engine
thread loads. With FAKE_TRIMS in the environment SIGRTMIN makes the C library give back all memory
that it keeps for later (Linux). FAKE_METRICS there is where metrics are, else at any port.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
import threading
from pathlib import Path
from typing import NoReturn

import anyio

from sapwood.daemon import entry
from sapwood.daemon.engine.loaded import Loaded
from sapwood.daemon.errors import StartError
from sapwood.daemon.log import log_to_stderr
from sapwood.daemon.process.run import serve
from sapwood.daemon.settings.config import load_config
from sapwood.scheduler.plan import StepPlan
from sapwood.scheduler.result import StepResult
from tests.daemon.fakes import FakeDevice, make_loader


class TimedDevice(FakeDevice):
    def __init__(self, step: str) -> None:
        super().__init__()
        self._step = step

    def wait(self, plan: StepPlan) -> StepResult:
        if self._step == "broken":
            raise RuntimeError(self._step)
        threading.Event().wait(None if self._step == "stuck" else float(self._step))
        return super().wait(plan)


def main(step: str, folder: str) -> NoReturn:
    entry.begin(serves=True)
    if "FAKE_TRIMS" in os.environ:
        trim = ctypes.CDLL(None).malloc_trim
        signal.signal(signal.SIGRTMIN, lambda *_: trim(0))
    config = load_config(
        {
            "config": f"{folder}/c.toml",
            "listen": [f"unix:{folder}/s", "127.0.0.1:0"],
            "metrics": os.environ.get("FAKE_METRICS", "127.0.0.1:0"),
            "ready_file": f"{folder}/ready.json",
        }
    )
    log_to_stderr(config.log_level, config.log_format)

    def load() -> Loaded:
        entry.all_imported()
        Path(folder, "loading").touch()
        if step == "loading":
            threading.Event().wait()
        if step == "refused":
            atexit.register(os.kill, os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            raise StartError("no such model")
        return make_loader(TimedDevice(step), config.limits)()

    entry.leave(anyio.run(serve, config, load))


if __name__ == "__main__":
    main(*sys.argv[1:])

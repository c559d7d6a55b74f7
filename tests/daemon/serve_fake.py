"""A daemon process on the fake device: `python -m tests.daemon.serve_fake STEP_S FOLDER`.

STEP_S is the time of one step; `stuck` never ends one, `broken` raises in the first. FOLDER has
`c.toml`; the socket `s` and `ready.json` appear there.
"""

from __future__ import annotations

import logging
import sys
import threading

import anyio

from sapwood.daemon.process.server import serve
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


def main(step: str, folder: str) -> int:
    logging.basicConfig(stream=sys.stderr)
    config = load_config(
        {
            "config": f"{folder}/c.toml",
            "listen": [f"unix:{folder}/s", "127.0.0.1:0"],
            "metrics": "127.0.0.1:0",
            "ready_file": f"{folder}/ready.json",
        }
    )
    return anyio.run(serve, config, make_loader(TimedDevice(step), config.limits))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

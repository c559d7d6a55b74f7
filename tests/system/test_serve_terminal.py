"""`serve`, `top` and `stop` in terminals, as somebody uses them who runs a daemon by hand."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests.system.terminal import terminal
from tests.test_rooms import ROOT

pytestmark = [pytest.mark.long, pytest.mark.timeout(600), pytest.mark.outside("tmux")]
SAPWOOD = f"{sys.executable} -m sapwood"


def test_a_daemon_by_hand(folder: Path) -> None:
    kept = {name: os.environ[name] for name in ("PATH", "LD_PRELOAD") if name in os.environ}
    environ = {**kept, "HOME": str(folder), "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8"}
    environ["XDG_RUNTIME_DIR"] = str(folder)
    serve = f"{SAPWOOD} serve --listen unix:{folder}/sapwood.sock --metrics 127.0.0.1:0"
    with terminal(folder, f"{serve} > {folder}/out", environ) as daemon:
        shown = daemon.wait(f"unix:{folder}/sapwood.sock")
        for label in ("model", "drafter", "memory", "context", "device"):
            assert f"\n{label}" in shown or shown.startswith(label)
        assert "warming up" not in shown  # the bar is gone
        # Standard output has the ready line alone, and the file lies where clients look for it.
        out = (folder / "out").read_text()
        assert out.startswith("sapwood ready: grpc unix:") and out.count("\n") == 1
        assert json.loads((folder / "sapwood.json").read_text())["pid"] > 1
        with terminal(folder, f"{SAPWOOD} top --interval 0.2", environ) as top:
            assert "tokens/s" in top.wait("memory")
            top.keys("C-c")
            top.wait("code 0")
        with terminal(folder, f"{SAPWOOD} stop", environ) as stop:
            stop.wait("stopped, process")
            stop.wait("code 0")
        daemon.wait("code 0")
    assert not (folder / "sapwood.json").exists()

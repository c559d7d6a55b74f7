"""A daemon with real SMG beside it, for tests that come over HTTP."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.process.processes import ROOT, appeared

PACKAGES = ("smg", "smg_grpc_proto", "openai", "anthropic")
MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
INSTALL = "pip install smg==1.13.0 smg-grpc-proto==0.4.28 openai anthropic, or `make .venv`"
needs_gateway = pytest.mark.skipif(
    bool(MISSING), reason=f"{', '.join(MISSING)} not installed ({INSTALL})"
)


@contextmanager
def ready_of(command: list[str], folder: Path) -> Iterator[Any]:
    """What `ready.json` in the folder says once the daemon serves; it is ended, with code 0."""
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, text=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        yield json.loads(appeared(folder / "ready.json", process).read_text())
        process.terminate()
        assert process.wait(30) == 0, (folder / "log").read_text()
    finally:
        process.kill()
        process.wait()


def openai_at(ready: Any) -> dict[str, Any]:
    """How a client of OpenAI's API is told where; of a daemon that wants no key."""
    return {"base_url": f"http://{ready['http']}/v1", "api_key": "none"}

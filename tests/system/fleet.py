"""Several daemons with the bundled pair behind one SMG, all of them processes, for tests.

- A worker that is started again has the port that it had: a fleet's workers are known by address.
- Who served a request is told by the daemons' own counters: ask one at a time.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from bench.peers.contestants import free_port
from sapwood.daemon import blas
from sapwood.daemon.demo.errors import DemoError
from sapwood.daemon.demo.scrape import scrape, total
from tests.daemon.process.processes import ROOT, appeared, wait_for

MODEL = "sapwood-demo"
MEMORY = "300MB"
_WORDS = (
    "river",
    "bread",
    "stone",
    "light",
    "garden",
    "window",
    "paper",
    "music",
    "winter",
    "road",
)


class Process:
    """One that is started and ended again and again; its lines go to one log."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.process: subprocess.Popen[str] | None = None

    def run(self, *command: str) -> subprocess.Popen[str]:
        environment = {**blas.environment(os.environ), "HF_HUB_OFFLINE": "1"}
        with (self.folder / f"{self.name}.log").open("a") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, text=True, env=environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        return self.process

    def end(self, number: signal.Signals) -> int:
        """Its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.end(signal.SIGKILL)


class Worker(Process):
    """A daemon that serves a gateway, and its own clients at `address`."""

    gateway = metrics = "127.0.0.1:0"

    @property
    def address(self) -> str:
        return f"unix:{self.folder}/{self.name}.sock"

    @property
    def url(self) -> str:
        return f"grpc://{self.gateway}"

    @property
    def _ready(self) -> Path:
        return self.folder / f"{self.name}.json"

    def start(self) -> None:
        self._ready.unlink(missing_ok=True)
        self.run(
            *(sys.executable, "-m", "sapwood", "serve", "--memory", MEMORY),
            *("--listen", self.address, "--metrics", self.metrics),
            *("--gateway", self.gateway, "--ready-file", str(self._ready)),
        )

    def wait_serving(self) -> None:
        assert self.process is not None, "not started"
        told = json.loads(appeared(self._ready, self.process).read_text())
        self.gateway, self.metrics = told["gateway"], told["metrics"]

    def counted(self, name: str) -> float:
        """Of its counters and gauges; 0 where it does not run."""
        try:
            return total(scrape(self.metrics), name)
        except DemoError:
            return 0.0


class Gateway(Process):
    """SMG, as docs/fleet.md starts it."""

    def __init__(self, folder: Path, port: int) -> None:
        super().__init__(folder, "gateway")
        self.root = f"http://127.0.0.1:{port}"
        self._port = port

    def start(self, workers: Sequence[str], *flags: str) -> None:
        """workers: their URLs. Until each of them is in use."""
        metrics = free_port()
        self.run(
            *(sys.executable, str(ROOT / "examples/fleet/gateway.py")),
            *("--host", "127.0.0.1", "--port", str(self._port), "--prometheus-port", str(metrics)),
            *("--health-check-interval-secs", "1", *flags),
            *("--worker-urls", *workers),
        )
        self._metrics = f"http://127.0.0.1:{metrics}/metrics"
        wait_for(lambda: self._is_ready() and self.workers() == len(workers))

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.root}/readiness", timeout=5):
                return True
        except OSError:
            return False

    def workers(self) -> int:
        """How many it would send a request to."""
        return int(self.counted("smg_worker_health"))

    def counted(self, name: str, label: str = "") -> float:
        """The sum of its own metric of this name whose labels have this text."""
        try:
            with urllib.request.urlopen(self._metrics, timeout=5) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return 0.0
        found = (line for line in lines if line.startswith(f"{name}{{") and label in line)
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)

    def complete(self, prompt: str, **options: Any) -> Any:
        """The usage of a reply. Raises HTTPError."""
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 2, "temperature": 0, **options}
        request = urllib.request.Request(
            f"{self.root}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["usage"]


class Fleet:
    """Workers that serve and a gateway that is not started yet."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.workers = [Worker(folder, f"worker{number}") for number in range(workers)]
        self.gateway = Gateway(folder, free_port())

    def start_gateway(self, *flags: str) -> None:
        self.gateway.start([worker.url for worker in self.workers], *flags)

    def served_by(self, ask: Callable[[], Any]) -> tuple[int, Any]:
        """Whose request that was, and what came back; nobody else may ask meanwhile."""
        before = [worker.counted("requests_total") for worker in self.workers]
        answer = ask()
        after = [worker.counted("requests_total") for worker in self.workers]
        moved = [new > old for old, new in zip(before, after, strict=True)]
        assert sum(moved) == 1, f"{before} to {after}"
        return moved.index(True), answer


@contextmanager
def fleet_of(folder: Path, workers: int) -> Iterator[Fleet]:
    fleet = Fleet(folder, workers)
    try:
        for worker in fleet.workers:
            worker.start()
        for worker in fleet.workers:
            worker.wait_serving()
        yield fleet
    finally:
        fleet.gateway.kill()
        for worker in fleet.workers:
            worker.kill()


def prompt_of(seed: int, words: int = 120) -> str:
    """Some 5 blocks that no other seed begins with."""
    random = Random(seed)
    return " ".join(random.choice(_WORDS) for _ in range(words))

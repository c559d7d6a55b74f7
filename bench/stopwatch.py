"""The daemon itself, `sapwood serve`, with a clock at every hand-over of its engine loop.

- `python -m bench.stopwatch FILE serve-flags...`: the same process in all but the loader, which
  wraps core and runner; no line of the daemon knows of it. What is timed is the real engine thread
  beside the real gRPC loop, waits for the interpreter's lock included.
- One record per step, in memory, written as JSON when the runner closes, after the drain.
- What submit and wait take is the runner's own account: seconds in calls of the device, in which
  MLX's CPU backend computes, and the rest, which is building the graph and reading what came back.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sapwood.__main__ import main as command
from sapwood.daemon.engine.loaded import Loaded, StepCore, StepRunner
from sapwood.daemon.process import assemble
from sapwood.daemon.settings.config import Config
from sapwood.model.pair import LoadReport
from sapwood.scheduler.plan import StepPlan
from sapwood.scheduler.result import StepResult

_clock = time.perf_counter


@dataclass(frozen=True, slots=True)
class TimedStep:
    """Seconds of one step of the engine loop, and what it carried.

    plan, commit: the core's calls. emit: between plan and submit, publishing counters and posting
    effects. device: what submit and wait stand in calls of the device; build: the rest of them.
    """

    rows: int
    drafted: int
    prefill_tokens: int
    moves: int  # captures, releases and admits: not a plain decode step
    plan_s: float
    build_s: float
    device_s: float
    emit_s: float
    commit_s: float

    @property
    def host_s(self) -> float:
        return self.plan_s + self.commit_s + self.emit_s

    @property
    def step_s(self) -> float:
        return self.host_s + self.build_s + self.device_s


class Stopwatch:
    """Core and runner of one engine, timed. Lives on the engine thread."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._steps: list[TimedStep] = []
        self._marks: dict[str, float] = {}

    def timed(self, core: StepCore, runner: StepRunner) -> tuple[_TimedCore, _TimedRunner]:
        """Both, to be used in the place of the originals."""
        timed = _TimedRunner(runner, self)
        return _TimedCore(core, timed, self), timed

    def mark(self, name: str) -> None:
        self._marks[name] = _clock()

    def step(self, plan: StepPlan, device_s: float) -> None:
        """Close a step: every mark of it is set. device_s: of submit and wait."""
        at = self._marks
        self._steps.append(
            TimedStep(
                rows=len(plan.decodes),
                drafted=sum(d.depth for d in plan.decodes),
                prefill_tokens=sum(len(p.tokens) for p in plan.prefills),
                moves=len(plan.captures) + len(plan.releases) + len(plan.admits),
                plan_s=at["planned"] - at["plan"],
                build_s=at["waited"] - at["submit"] - device_s,
                device_s=device_s,
                emit_s=at["submit"] - at["planned"],
                commit_s=at["committed"] - at["commit"],
            )
        )

    def write(self) -> None:
        self._file.write_text(json.dumps([asdict(step) for step in self._steps]))


class _TimedCore:
    """A Core whose plan and commit are marked; the rest is the core's own."""

    def __init__(self, core: StepCore, runner: _TimedRunner, watch: Stopwatch) -> None:
        self._core, self._runner, self._watch = core, runner, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def plan(self, now: float) -> StepPlan | None:
        self._watch.mark("plan")
        plan = self._core.plan(now)
        self._watch.mark("planned")
        return plan

    def commit(self, plan: StepPlan, result: StepResult, now: float) -> None:
        self._watch.mark("commit")
        self._core.commit(plan, result, now)
        self._watch.mark("committed")
        self._watch.step(plan, self._runner.take_device_s())


class _TimedRunner:
    """A Runner whose submit and wait are marked."""

    def __init__(self, runner: StepRunner, watch: Stopwatch) -> None:
        self._runner, self._watch = runner, watch
        self._taken_s = runner.device_s

    @property
    def device_s(self) -> float:
        return self._runner.device_s

    @property
    def drafted_at(self) -> float:
        return self._runner.drafted_at

    def take_device_s(self) -> float:
        """Since the last call."""
        before, self._taken_s = self._taken_s, self._runner.device_s
        return self._taken_s - before

    def submit(self, plan: StepPlan) -> Any:
        self._watch.mark("submit")
        return self._runner.submit(plan)

    def wait(self, ticket: Any) -> StepResult:
        result = self._runner.wait(ticket)
        self._watch.mark("waited")
        return result

    def make_copies(self, bytes_max: int) -> None:
        self._runner.make_copies(bytes_max)

    def close(self) -> None:
        self._runner.close()
        self._watch.write()


def main(argv: Sequence[str]) -> int:
    watch, load = Stopwatch(Path(argv[0])), assemble.load

    def timed(config: Config, report: LoadReport = lambda done, total: None) -> Loaded:
        loaded = load(config, report)
        core, runner = watch.timed(loaded.core, loaded.runner)
        return replace(loaded, core=core, runner=runner)

    assemble.load = timed
    return command(["serve", *argv[1:]])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

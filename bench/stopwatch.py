"""The daemon itself, `sapwood serve`, with a clock at every hand-over of its engine loop.

- `python -m bench.stopwatch FILE serve-flags...`: the same process in all but the loader, which
  wraps core and runner; no line of the daemon knows of it. What is timed is the real engine thread
  beside the real gRPC loop, waits for the interpreter's lock included.
- One record per step, in memory, written as JSON when the runner closes, after the drain.
- submit is split where the finished graph is handed to MLX: before it is graph building; from there
  on MLX's CPU backend computes inside the call, so that part belongs to the device.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from sapwood.__main__ import main as command
from sapwood.daemon.engine.loaded import Loaded, StepCore, StepRunner
from sapwood.daemon.process import assemble
from sapwood.daemon.settings.config import Config
from sapwood.scheduler.plan import StepPlan
from sapwood.scheduler.result import StepResult

_clock = time.perf_counter


@dataclass(frozen=True, slots=True)
class TimedStep:
    """Seconds of one step of the engine loop, and what it carried.

    plan, commit: the core's calls. build: submit before the graph is handed over; device: the rest
    of submit, and wait. emit: between submit and wait, publishing counters and posting effects.
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
        """Both, to be used in the place of the originals; also MLX's async_eval, from now on."""
        _time_async_eval(self)
        return _TimedCore(core, self), _TimedRunner(runner, self)

    def mark(self, name: str) -> None:
        self._marks[name] = _clock()

    def step(self, plan: StepPlan) -> None:
        """Close a step: every mark of it is set."""
        at = self._marks
        self._steps.append(
            TimedStep(
                rows=len(plan.decodes),
                drafted=sum(d.depth for d in plan.decodes),
                prefill_tokens=sum(len(p.tokens) for p in plan.prefills),
                moves=len(plan.captures) + len(plan.releases) + len(plan.admits),
                plan_s=at["planned"] - at["plan"],
                build_s=at["built"] - at["submit"],
                device_s=at["submitted"] - at["built"] + at["waited"] - at["wait"],
                emit_s=at["wait"] - at["submitted"],
                commit_s=at["committed"] - at["commit"],
            )
        )

    def write(self) -> None:
        self._file.write_text(json.dumps([asdict(step) for step in self._steps]))


class _TimedCore:
    """A Core whose plan and commit are marked; the rest is the core's own."""

    def __init__(self, core: StepCore, watch: Stopwatch) -> None:
        self._core, self._watch = core, watch

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
        self._watch.step(plan)


class _TimedRunner:
    """A Runner whose submit and wait are marked."""

    def __init__(self, runner: StepRunner, watch: Stopwatch) -> None:
        self._runner, self._watch = runner, watch

    def submit(self, plan: StepPlan) -> Any:
        self._watch.mark("submit")
        ticket = self._runner.submit(plan)
        self._watch.mark("submitted")
        if not (plan.decodes or plan.prefills):
            self._watch.mark("built")  # no graph was handed over
        return ticket

    def wait(self, ticket: Any) -> StepResult:
        self._watch.mark("wait")
        result = self._runner.wait(ticket)
        self._watch.mark("waited")
        return result

    def close(self) -> None:
        self._runner.close()
        self._watch.write()


def _time_async_eval(watch: Stopwatch) -> None:
    """The one place where the runner hands its graph over."""
    hand_over: Callable[..., None] = mx.async_eval

    def timed(*arrays: Any) -> None:
        watch.mark("built")
        hand_over(*arrays)

    mx.async_eval = timed


def main(argv: Sequence[str]) -> int:
    watch, load = Stopwatch(Path(argv[0])), assemble.load

    def timed(config: Config) -> Loaded:
        loaded = load(config)
        core, runner = watch.timed(loaded.core, loaded.runner)
        return replace(loaded, core=core, runner=runner)

    assemble.load = timed
    return command(["serve", *argv[1:]])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The engine's loop in line, in this process: core and runner of a loaded pair, without a daemon.

- Core and runner are the product's own, put together as the daemon does; nobody reads what leaves,
  and no thread competes.
- Whoever wants to know what a step was, or how long each call of the core took, is told after it.
- Where there is a folder, the port to the disk stands in the loop as in the engine's, and what the
  disk's thread reports is taken in between two steps.
- Where only the core is looked at, a device that knows its answers takes the runner's place.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench.measure import BenchError
from sapwood.cache.disk.store import RawReport
from sapwood.daemon.engine.loaded import Loaded, StepCore
from sapwood.daemon.process.assemble import put_together
from sapwood.daemon.process.disk import open_disk
from sapwood.daemon.settings.config import load_config
from sapwood.model.pair import Pair
from sapwood.scheduler.disk import FilesFound
from sapwood.scheduler.events import Failed, Finished, Request, Submit, Usage
from sapwood.scheduler.plan import StepPlan
from sapwood.scheduler.result import Decoded, Prefilled, StepResult

_STEPS_MAX = 100_000
_OPENED_S_MAX = 60.0
_now = time.perf_counter


@dataclass(frozen=True, slots=True)
class InLineStep:
    """One step, and the seconds of its calls. emit: the core's counters and effects.

    run: of the runner, which waits for the device. cpu_s: that this process computed in all of it,
    every thread; what others take of the machine makes it no longer.
    """

    plan: StepPlan
    plan_s: float
    emit_s: float
    commit_s: float
    run_s: float = 0.0
    cpu_s: float = 0.0

    @property
    def host_s(self) -> float:
        return self.plan_s + self.emit_s + self.commit_s

    @property
    def moves(self) -> bool:
        """Whether somebody came or went in it."""
        return bool(self.plan.captures or self.plan.releases or self.plan.admits)


class ReadyDevice:
    """A runner that knows its answers: half of all drafts hold, and every token is `token`."""

    device_s = 0.0
    drafted_at = 0.0

    def __init__(self, token: int, working: Callable[[StepPlan], object]) -> None:
        """working: called in every step, so that caches are as a step leaves them."""
        self._token, self._working = token, working

    def submit(self, plan: StepPlan) -> StepPlan:
        return plan

    def wait(self, ticket: StepPlan) -> StepResult:
        """Of a plan that captures nothing: there is no K/V."""
        self._working(ticket)
        decoded = (Decoded((self._token,) * (d.depth // 2 + 1), d.depth) for d in ticket.decodes)
        first = (Prefilled(self._token if p.draws else None, None) for p in ticket.prefills)
        return StepResult(tuple(decoded), tuple(first), (None,) * len(ticket.captures))

    def make_copies(self, bytes_max: int) -> None:
        """Of nothing."""

    def close(self) -> None:
        """Nothing is held."""


class InLineDisk:
    """The port to a folder that nothing lies in yet. Whoever made it closes it."""

    def __init__(self, loaded: Loaded) -> None:
        """Of one whose folder is open; waits until its thread has looked at it."""
        self._reports: queue.SimpleQueue[RawReport] = queue.SimpleQueue()
        port = loaded.open_disk(self._reports.put)
        assert port is not None, "there is no folder"
        self.port = port
        found = self._reports.get(timeout=_OPENED_S_MAX)
        assert isinstance(found, FilesFound) and not found.files, f"not an empty folder: {found}"
        loaded.core.handle(found, _now())

    def take(self, core: StepCore) -> None:
        """Hand over what was reported."""
        while not self._reports.empty():
            core.handle(self.port.command(self._reports.get()), _now())

    def close(self) -> None:
        self.port.close()


@contextmanager
def in_line(
    pair: Pair,
    budget_bytes: int | None = None,
    cache_dir: Path | None = None,
    itl_target: float | None = None,
) -> Iterator[Loaded]:
    """Core and runner around the pair, which stays the caller's; closed at the end.

    budget_bytes, itl_target: None for the daemon's own. cache_dir: a folder, for an InLineDisk to
    take over.
    """
    told = {"cache_dir": cache_dir and str(cache_dir), "itl_target": itl_target}
    given = {name: value for name, value in told.items() if value is not None}
    config = replace(load_config(given), memory_bytes=budget_bytes)
    drafter = "drafter" if pair.assistant else ""
    loaded = put_together(config, pair, drafter, disk=open_disk(config))
    try:
        yield loaded
    finally:
        loaded.runner.close()


def served_in_line(
    loaded: Loaded,
    requests: Sequence[Request],
    told: Callable[[InLineStep], object] = lambda step: None,
    disk: InLineDisk | None = None,
) -> list[Usage]:
    """Serve all requests together, to their ends: what each took. Raises BenchError."""
    usages: dict[int, Usage] = {}
    for step in stepped_in_line(loaded, requests, disk, usages):
        told(step)
    return [usages[request.id] for request in requests]


def stepped_in_line(
    loaded: Loaded,
    requests: Sequence[Request],
    disk: InLineDisk | None = None,
    usages: dict[int, Usage] | None = None,
) -> Iterator[InLineStep]:
    """The same step by step: nothing goes on until the next one is asked for. Raises BenchError.

    usages: by request, of those that have ended.
    """
    core, runner = loaded.core, loaded.runner
    usages = {} if usages is None else usages
    for request in requests:
        core.handle(Submit(request), _now())
    for _ in range(_STEPS_MAX):
        if disk is not None:
            disk.take(core)
        if not core.has_work:
            return
        began, cpu_s = _now(), time.process_time()
        plan = core.plan(began)
        runner.make_copies(core.spare_bytes)
        if disk is not None:
            disk.port.carry_out()
        planned = _now()
        core.stats()
        effects = core.take_effects()
        emitted = _now()
        for effect in effects:
            if isinstance(effect, Failed):
                raise BenchError(f"a request failed: {effect.message}")
            if isinstance(effect, Finished):
                usages[effect.id] = effect.usage
        if plan is not None:
            result = runner.wait(runner.submit(plan))
            ran = _now()
            core.commit(plan, result, ran)
            runner.make_copies(core.spare_bytes)
            if disk is not None:
                disk.port.stepped(_now())
            seconds = planned - began, emitted - planned, _now() - ran, ran - emitted
            yield InLineStep(plan, *seconds, time.process_time() - cpu_s)
    raise AssertionError(f"still at work after {_STEPS_MAX} steps")

"""The one thread that owns the core, the tree, the device and every array.

- The model is loaded on this thread and its arrays are freed on it: MLX streams are thread-local.
- In: frozen commands through `send`, read-only questions through `ask`, served between steps.
  Out: reports posted to the event loop, one for a step's effects. Nothing else is shared:
  `Published` is immutable and replaced whole, before the effects that it counts leave.
- The loop holds no policy: plan, emit, submit, commit. What plan and commit made of the tree the
  device makes before they count as over: so nobody is told of room that is not there.
- Rounds that are computed once more are so between two steps, when the last one's tokens have left.
- A step's tokens leave while the device has nothing to do: once the next step is handed over, the
  thread may stand before a full queue.
- A step that the device had no memory for is lost, and all go on from what the tree has. Else it is
  fail-stop: an exception of core or device ends the thread with a fault that ends the process.
"""

from __future__ import annotations

import gc
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from sapwood.cache.disk.store import RawGroup
from sapwood.daemon.engine.account import MemoryUse
from sapwood.daemon.engine.card import ModelCard
from sapwood.daemon.engine.disk_port import DiskPort
from sapwood.daemon.engine.loaded import Loaded, StepCore
from sapwood.daemon.engine.replay_port import ReplayPort, RoundFault
from sapwood.daemon.engine.step_clock import StepClock, StepTimes
from sapwood.daemon.errors import StartError, UsageError
from sapwood.daemon.faults import described
from sapwood.scheduler.events import Command, Effect
from sapwood.scheduler.histogram import HistogramView
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.plan import StepPlan
from sapwood.scheduler.result import StepLost
from sapwood.scheduler.stats import Stats

_T = TypeVar("_T")
Clock = Callable[[], float]

_log = logging.getLogger(__name__)


class EngineEnded(Exception):
    """Raised to whoever asked an engine that has ended."""


@dataclass(frozen=True, slots=True)
class Published:
    """One step's immutable account, for the metrics and the page."""

    stats: Stats
    phases: Mapping[str, HistogramView]  # seconds, by phase of a step
    memory: MemoryUse
    steps: tuple[StepTimes, ...]  # the newest, the oldest of them first


class Listener(Protocol):
    """Who hears from the engine; called on the engine thread, must only post and return."""

    def loaded(self, card: ModelCard) -> None:
        """Commands and asks are served from here on. At most once, before any effects."""

    def effects(self, effects: tuple[Effect, ...]) -> None:
        """Of one step, in order, never empty; the counts that go with them are published."""

    def ended(self, fault: Fault | None) -> None:
        """The last call, always made. `fault` None: it was drained."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why the engine ended. `message` is for the operator's terminal, never for a client."""

    message: str
    usage: bool = False


@dataclass(frozen=True, slots=True)
class _Ask:
    """A read-only closure to run between two steps, and where its answer goes."""

    work: Callable[[Loaded], Any]
    answer: Future[Any] = field(default_factory=Future)


class Engine:
    """Starts the thread, talks to it, and watches it."""

    def __init__(
        self,
        load: Callable[[], Loaded],
        listener: Listener,
        limits: Limits,
        clock: Clock = time.monotonic,
    ) -> None:
        self._load = load
        self._listener = listener
        self._limits = limits
        self._clock = clock
        self._inbox: queue.SimpleQueue[Command | _Ask | RawGroup] = queue.SimpleQueue()
        self._disk: DiskPort | None = None
        self._replays: ReplayPort | None = None
        self._ended = threading.Event()
        self._quiet_since: float | None = None
        self._published: Published | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def published(self) -> Published | None:
        """The newest account, for any thread; None until the model is loaded."""
        return self._published

    @property
    def alive(self) -> bool:
        """Whether the thread runs: not before start(), not after its end."""
        return self._thread.is_alive()

    @property
    def quiet_s(self) -> float:
        """Seconds since the last step ended, while there is work (0 without): the watchdog's."""
        since = self._quiet_since
        return 0.0 if since is None else self._clock() - since

    def start(self) -> None:
        """Begin to load, on the engine thread. Once."""
        self._thread.start()

    def send(self, command: Command) -> None:
        """From any thread, without waiting; handled in order, once the model is loaded."""
        self._inbox.put(command)

    def ask(self, work: Callable[[Loaded], _T]) -> Future[_T]:
        """Run a read-only closure on the engine thread, between two steps; from any thread.

        Fails with what the closure raises, or with EngineEnded once nobody works.
        """
        ask = _Ask(work)
        self._inbox.put(ask)
        if self._ended.is_set():
            self._refuse_asks()
        return ask.answer

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread to end; False if it did not."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        fault = self._live()
        # The frames that held core, runner and payloads are gone; cycles are freed here as well.
        gc.collect()
        self._ended.set()
        self._refuse_asks()
        self._listener.ended(fault)

    def _live(self) -> Fault | None:
        steps, core = StepClock(), None
        try:
            loaded = self._load()
            core = loaded.core
            try:
                self._disk = loaded.open_disk(self._inbox.put)
                self._replays = loaded.open_replays()
                self._publish(loaded, steps)
                self._listener.loaded(loaded.card)
                self._loop(loaded, steps)
            finally:
                if self._disk is not None:
                    self._disk.close()
                loaded.runner.close()
                loaded.leave_thread()
        except UsageError as error:
            return Fault(str(error), usage=True)
        except StartError as error:
            return Fault(str(error))
        except RoundFault as fault:
            told = "\n".join([str(fault), steps.story(), *_stories(core)])
            _log.critical("a round comes out otherwise when it is computed again: %s", told)
            return Fault("the self-check found a fault, and --self-check stop ends the daemon")
        except BaseException as fault:
            told = "\n".join([steps.story(), *_stories(core)])
            _log.critical("engine failed: %s%s", described(fault), told)
            return Fault(f"the engine failed with {type(fault).__name__}")
        return None

    def _loop(self, loaded: Loaded, steps: StepClock) -> None:
        core, runner, clock = loaded.core, loaded.runner, self._clock
        while not core.finished:
            for command in self._commands(loaded, steps):
                core.handle(command, clock())
            steps.begin()
            plan = core.plan(clock())
            runner.make_copies(core.spare_bytes)
            if self._disk is not None:
                self._disk.carry_out()
            steps.over("plan")
            self._emit(loaded, steps, plan)  # before the device's queue fills up
            steps.over("emit")
            if plan is None:
                continue
            steps.planned(plan)
            device_s = runner.device_s
            try:
                result = runner.wait(runner.submit(plan))
            except StepLost as lost:
                _log.warning("a step is lost, all go on from what is stored: %s", lost)
                core.lose(plan, clock())
                self._quiet_since = clock()
                continue
            steps.ran(runner.device_s - device_s, runner.drafted_at)
            core.commit(plan, result, clock())
            runner.make_copies(core.spare_bytes)
            if self._disk is not None:
                self._disk.stepped(clock())
            steps.over("commit")
            steps.finish()
            self._quiet_since = clock()
            self._replay(loaded, steps)
        self._emit(loaded, steps)
        core.close()

    def _commands(self, loaded: Loaded, steps: StepClock) -> Iterator[Command]:
        """What came in; waits for something where there is nothing to do."""
        idle = not loaded.core.has_work
        if idle:
            self._quiet_since = None
            # The last commit stored the reply and freed its slot: no step comes to tell of it.
            self._publish(loaded, steps)
            self._page_out()
            if self._inbox.empty():
                self._replay(loaded, steps)
                self._quiet_since = None
        item = self._receive(self._limits.idle_s_max if idle else None)
        if idle and item is None and steps.unchecked:
            steps.unchecked = False
            loaded.core.check()
        while item is not None:
            self._quiet_since = self._quiet_since or self._clock()
            if isinstance(item, _Ask):
                _answer(item, loaded)
            elif isinstance(item, RawGroup):
                assert self._disk is not None, "nothing was ordered"
                yield self._disk.command(item)
            else:
                yield item
            item = self._receive(None)

    def _replay(self, loaded: Loaded, steps: StepClock) -> None:
        """Compute a round once more, if one is due. What steps gave leaves first."""
        if self._replays is None or (due := self._replays.due()) is None:
            return
        self._emit(loaded, steps)
        self._quiet_since = self._clock()
        self._replays.carry_out(due, self._clock)
        self._publish(loaded, steps)
        self._quiet_since = self._clock()

    def _page_out(self) -> None:
        """For as long as nobody wants anything."""
        while self._disk is not None and self._inbox.empty():
            if not self._disk.page_out(self._clock()):
                return

    def _receive(self, timeout_s: float | None) -> Command | _Ask | RawGroup | None:
        try:
            return self._inbox.get(timeout_s is not None, timeout_s)
        except queue.Empty:
            return None

    def _emit(self, loaded: Loaded, steps: StepClock, plan: StepPlan | None = None) -> None:
        self._publish(loaded, steps, plan)
        if effects := loaded.core.take_effects():
            self._listener.effects(effects)

    def _publish(self, loaded: Loaded, steps: StepClock, plan: StepPlan | None = None) -> None:
        """plan: the one that is not carried out yet."""
        stats = loaded.core.stats()
        memory = loaded.memory(stats)
        if plan is not None and plan.releases and self._published is not None:
            # The ledger has given these rows back, and the device still holds them.
            memory = replace(memory, unaccounted=self._published.memory.unaccounted)
        self._published = Published(stats, steps.phases(), memory, steps.newest())

    def _refuse_asks(self) -> None:
        while (item := self._receive(None)) is not None:
            if isinstance(item, _Ask) and item.answer.set_running_or_notify_cancel():
                item.answer.set_exception(EngineEnded("nobody is there to answer"))


def _stories(core: StepCore | None) -> list[str]:
    """What every request went through, for the crash log; a core that broke may not tell it."""
    try:
        return [] if core is None else core.stories()
    except Exception as fault:
        return [f"the core cannot tell more: {type(fault).__name__}"]


def _answer(ask: _Ask, loaded: Loaded) -> None:
    if not ask.answer.set_running_or_notify_cancel():
        return
    try:
        ask.answer.set_result(ask.work(loaded))
    except Exception as error:  # the asker's fault: it must not end the engine
        ask.answer.set_exception(error)

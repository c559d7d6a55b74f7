"""The real engine, core and runner over a small pair, with everything that leaves them on record.

- One thread, the engine's, does all of it; a test waits for its end and then looks.
- `log` has the device's calls beside the loop's: what was planned, posted and committed, in order.
- Time is counted in looks at the clock: a busy machine would have prompts cut into smaller slices.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from sapwood.cache.prefix.describe import NodeView
from sapwood.daemon.engine.card import ModelCard
from sapwood.daemon.engine.engine import Engine, Fault
from sapwood.daemon.engine.loaded import Loaded
from sapwood.daemon.engine.recording import RecordedCore
from sapwood.daemon.process import assemble
from sapwood.daemon.settings.config import Config
from sapwood.model.pair import Pair, load_pair
from sapwood.model.runner import Runner, Ticket
from sapwood.scheduler.events import Drain, Effect, Request, Submit
from sapwood.scheduler.plan import StepPlan
from sapwood.scheduler.result import StepResult
from sapwood.scheduler.sampling import Sampling
from tests.daemon.conftest import config_for
from tests.model.device_log import DeviceLog
from tests.model.reference import checkpoint

PLAN, POST, COMMIT = "plan", "post", "commit"


class WatchedRunner(Runner):
    """Tells `before_submit` of each plan and `before_wait` of each ticket; they may damage it."""

    def __init__(self, pair: Pair, slots_max: int, depth_max: int) -> None:
        super().__init__(pair, slots_max, depth_max)
        self.before_submit: Callable[[StepPlan], object] = lambda plan: None
        self.before_wait: Callable[[Ticket], object] = lambda ticket: None
        self.results: list[StepResult] = []

    def submit(self, plan: StepPlan) -> Ticket:
        self.before_submit(plan)
        return super().submit(plan)

    def wait(self, ticket: Ticket) -> StepResult:
        self.before_wait(ticket)
        result = super().wait(ticket)
        self.results.append(result)
        return result


def load_watched(config: Config, prepare: Callable[[WatchedRunner], object]) -> Loaded:
    """A small pair and its core, over a runner that `prepare` gets before its first step."""
    pair = load_pair(checkpoint("e2b-tiny"), checkpoint("e2b-tiny-assistant"), "float32")
    loaded = assemble.put_together(config, pair, "drafter")
    runner = WatchedRunner(pair, config.limits.slots_max, config.limits.draft_depth_max)
    prepare(runner)
    return replace(loaded, runner=runner)


class EngineHouse:
    """An engine, its listener, and what it told. log: of the device's calls."""

    def __init__(self, record: Path, log: DeviceLog) -> None:
        self.config = config_for()
        self.record, self.log = record, log
        self.results: list[StepResult] = []
        self.effects: list[Effect] = []
        self.fault: Fault | None = None
        self.on_effects: Callable[[tuple[Effect, ...]], object] = lambda effects: None
        self.prepare: Callable[[WatchedRunner], object] = lambda runner: None
        self.describe: Callable[[], Any] = tuple
        self._ended = threading.Event()
        clock = count(step=0.001).__next__
        self.engine = Engine(self.load, _Listener(self), self.config.limits, clock)

    def load(self) -> Loaded:
        """As the daemon does, on the engine thread."""
        loaded = load_watched(self.config, self.prepare)
        self.describe = loaded.describe_tree
        facts, limits = loaded.card.facts, self.config.limits
        core = RecordedCore(loaded.core, facts, limits, self.record.open("wb"))
        return replace(loaded, core=_WatchedCore(core, self))

    def submit(self, id: int, prompt: range, tokens: int = 40, **options: Any) -> None:
        request = Request(id, b"root", tuple(prompt), tokens, Sampling(), ignore_eos=True)
        self.engine.send(Submit(replace(request, **options)))

    def drain(self) -> None:
        self.engine.send(Drain())

    def wait_ended(self) -> None:
        assert self._ended.wait(60.0)
        assert self.engine.join(10.0)

    def nodes(self) -> list[NodeView]:
        return list(self.describe())

    def lines(self, kind: str) -> list[Any]:
        """Of the recording: `plan`, `decoded` (of commits)."""
        lines = [json.loads(line) for line in self.record.read_text().splitlines()]
        return [line for line in lines if kind in line]


class _WatchedCore:
    """A core that tells when it plans and commits; the rest is its own."""

    def __init__(self, core: Any, house: EngineHouse) -> None:
        self._core, self._house = core, house

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def plan(self, now: float) -> StepPlan | None:
        self._house.log.append(PLAN)
        plan: StepPlan | None = self._core.plan(now)
        return plan

    def commit(self, plan: StepPlan, result: StepResult, now: float) -> None:
        self._house.log.append(COMMIT)
        self._core.commit(plan, result, now)
        self._house.results.append(result)


class _Listener:
    def __init__(self, house: EngineHouse) -> None:
        self._house = house

    def loaded(self, card: ModelCard) -> None:
        pass

    def effects(self, effects: tuple[Effect, ...]) -> None:
        self._house.log.append(POST)
        self._house.effects += effects
        self._house.on_effects(effects)

    def ended(self, fault: Fault | None) -> None:
        self._house.fault = fault
        self._house._ended.set()

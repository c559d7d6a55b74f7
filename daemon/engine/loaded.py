"""What the loader gives to the engine thread, and what the loop asks of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from sapwood.cache.prefix.describe import NodeView
from sapwood.daemon.engine.card import ModelCard
from sapwood.scheduler.events import Command, Effect
from sapwood.scheduler.plan import StepPlan
from sapwood.scheduler.result import StepResult
from sapwood.scheduler.stats import Stats


class StepCore(Protocol):
    """What the loop asks of the scheduler's Core."""

    @property
    def has_work(self) -> bool:
        """Work for the device, or effects to take; False: wait for a command."""

    @property
    def finished(self) -> bool: ...
    def handle(self, command: Command, now: float) -> None: ...
    def plan(self, now: float) -> StepPlan | None: ...
    def commit(self, plan: StepPlan, result: StepResult, now: float) -> None: ...
    def take_effects(self) -> tuple[Effect, ...]: ...
    def stats(self) -> Stats: ...
    def check(self) -> None: ...
    def close(self) -> None: ...
    def stories(self) -> list[str]: ...


class StepRunner(Protocol):
    """What the loop asks of the model's Runner."""

    def submit(self, plan: StepPlan) -> Any: ...
    def wait(self, ticket: Any) -> StepResult: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the loader made. All but `card` stays on the engine thread."""

    card: ModelCard
    core: StepCore
    runner: StepRunner
    describe_tree: Callable[[], Iterable[NodeView]]
    leave_thread: Callable[[], None] = lambda: None  # the last call on the engine thread

    def view_stats(self) -> Stats:
        return self.core.stats()

    def view_tree(self) -> TreeView:
        return TreeView(self.core.stats().steps, tuple(self.describe_tree()))


@dataclass(frozen=True, slots=True)
class TreeView:
    """The tree between two steps, parents before their children."""

    step: int
    nodes: tuple[NodeView, ...]

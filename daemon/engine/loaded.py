"""What the loader gives to the engine thread, and what the loop asks of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sapwood.cache.disk.store import RawReport
from sapwood.cache.prefix.catalogue import Kind
from sapwood.cache.prefix.describe import EdgeView, NodeView
from sapwood.cache.prefix.sketch import Sketch
from sapwood.daemon.engine.account import MemoryUse, memory_use
from sapwood.daemon.engine.card import ModelCard
from sapwood.daemon.engine.disk_port import DevicePager, DiskPort, OpenStore
from sapwood.daemon.engine.replay_port import ReplayPort
from sapwood.scheduler.disk import DiskOrder, PageOut
from sapwood.scheduler.events import Command, Effect, PinView
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.plan import StepPlan
from sapwood.scheduler.replay import Replay, Replayed
from sapwood.scheduler.result import StepResult
from sapwood.scheduler.session_events import HeldSession, SessionKey, SessionView
from sapwood.scheduler.stats import Stats
from sapwood.scheduler.stream_view import StreamView


class StepCore(Protocol):
    """What the loop asks of the scheduler's Core."""

    @property
    def has_work(self) -> bool:
        """Work for the device, or effects to take; False: wait for a command."""

    @property
    def finished(self) -> bool:
        """Drained, with nothing left to do or tell: the loop ends."""

    @property
    def spare_bytes(self) -> int:
        """What nothing lies in between two steps, so that copies have room there."""

    def handle(self, command: Command, now: float) -> None:
        """Between a commit and the next plan. `now`: the engine's clock, in seconds."""

    def plan(self, now: float) -> StepPlan | None:
        """The next step, to be committed before another; None: nothing for the device."""

    def commit(self, plan: StepPlan, result: StepResult, now: float) -> None:
        """What the device answered to the last plan. Takes the result's payloads."""

    def lose(self, plan: StepPlan, now: float) -> None:
        """Instead of commit, where the runner raised StepLost. Raises DeviceExhausted."""

    def take_effects(self) -> tuple[Effect, ...]:
        """What happened since the last call, in order, each effect once."""

    def take_disk_orders(self) -> tuple[DiskOrder, ...]:
        """What the disk is to do, in order, each once."""

    def page_out(self, now: float) -> PageOut | None:
        """What to copy to disk now; its payloads are lent until the next call."""

    def take_replay(self) -> Replay | None:
        """A round to compute once more now, between two steps; each once."""

    def replayed(self, replay: Replay, replayed: Replayed, seconds: float) -> None:
        """What came of one that was taken, and how long it took."""

    def stats(self) -> Stats:
        """The counts of this moment; cheap enough for every step."""

    def pins(self, now: float) -> tuple[PinView, ...]:
        """What is pinned, oldest first."""

    def sessions(self, owner: str, now: float) -> tuple[SessionView, ...]:
        """Its owner's, by name."""

    def session(self, key: SessionKey, now: float) -> HeldSession | None:
        """None where there is no such session."""

    def readers(self) -> Mapping[int, int]:
        """By the id of a tree's node: how many slots read its full K/V where it lies."""

    def on_disk(self, tokens_max: int | None = None, /) -> Mapping[int, Mapping[Kind, int]]:
        """By the id of a tree's node: bytes on disk of the blocks that end in it.

        tokens_max: of about so many tokens; the nodes past them are left out.
        """

    def streams(self, now: float, most: int) -> tuple[StreamView, ...]:
        """Who has a slot, in order of admission, then who waits for one; `most` of them."""

    def check(self) -> None:
        """Assert the invariants. O(sequences + tree), so only when idle."""

    def close(self) -> None:
        """Free what is stored. Only once finished."""

    def stories(self) -> list[str]:
        """What each sequence went through, without its text: for the crash log."""


class StepRunner(Protocol):
    """What the loop asks of the model's Runner."""

    @property
    def device_s(self) -> float:
        """Seconds so far that its calls stood in calls of the device; the rest is the host's."""

    @property
    def drafted_at(self) -> float:
        """When the drafts of the newest step that had any were there, by perf_counter; 0: never."""

    def submit(self, plan: StepPlan) -> Any:
        """Start a step without waiting for it; what comes back is for `wait` alone.

        Raises StepLost, as `wait` does, where the device has no memory for it.
        """

    def wait(self, ticket: Any) -> StepResult:
        """Block until the step is done; its payloads are the caller's. Once for each ticket."""

    def make_copies(self, bytes_max: int) -> None:
        """Block until what the tree has cut, joined and thinned is made, its sources freed.

        In as few waits as room for bytes_max allows. Between a plan or a commit and what follows.
        """

    def close(self) -> None:
        """Free all arrays, on the thread that made them."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the loader made. All but `card` stays on the engine thread."""

    card: ModelCard
    core: StepCore
    runner: StepRunner
    describe_tree: Callable[..., Iterable[NodeView]]  # as Tree.describe
    leave_thread: Callable[[], None] = lambda: None  # the last call on the engine thread
    # Tells the device of the bytes reserved for a step, and of those that nobody has; gives how
    # many arrays hold, and how many are kept for reuse beside them.
    follow: Callable[[int, int], tuple[int, int]] = lambda workspace_bytes, free_bytes: (0, 0)
    other_bytes: int = 0  # of the budget, that the process takes beside arrays
    # Where prefixes are kept on disk: what copies them, and opens their folder's store; without a
    # store the folder could not be opened.
    pager: DevicePager | None = None
    open_store: OpenStore | None = None
    # Computes a round once more; None: nobody does.
    replay: Callable[[Replay], Replayed] | None = None
    # At most so many nodes, of so many looked at: for Engine.ask.
    sketch_tree: Callable[[int, int], Sketch] = lambda looks_max, nodes_max: Sketch()
    # All edges below a root: for Engine.ask. O(nodes)
    outline_tree: Callable[[bytes], Sequence[EdgeView]] = lambda root: ()

    def open_disk(self, send: Callable[[RawReport], None]) -> DiskPort | None:
        """Between the core and the disk, where there is one. send: of any thread."""
        if self.pager is None:
            return None
        return DiskPort(self.core, self.pager, self.open_store, send)

    def open_replays(self) -> ReplayPort | None:
        """Between the core and what replays its rounds, where somebody does."""
        if self.replay is None:
            return None
        return ReplayPort(self.core, self.replay, stops=self.card.self_check == "stop")

    def view_account(self) -> tuple[Stats, MemoryUse]:
        """The counts between two steps, and the budget by them: for Engine.ask."""
        stats = self.core.stats()
        return stats, self.memory(stats)

    def memory(self, stats: Stats) -> MemoryUse:
        """What the budget is used for, by these counts, which are of now."""
        account = stats.memory
        return memory_use(stats, *self.follow(account.workspace, account.free), self.other_bytes)

    def view_pins(self, now: float) -> tuple[PinView, ...]:
        """What is pinned, oldest first: for Engine.ask. `now`: of the engine's clock."""
        return self.core.pins(now)

    def view_sessions(self, owner: str, now: float) -> tuple[SessionView, ...]:
        """Its owner's, by name: for Engine.ask. `now`: of the engine's clock."""
        return self.core.sessions(owner, now)

    def hold_session(self, key: SessionKey, now: float) -> HeldSession | None:
        """What a prompt needs of it, None where there is none: for Engine.ask. `now`: as above."""
        return self.core.session(key, now)

    def view_tree(self, tokens: bool = False) -> TreeView:
        """Every node: for Engine.ask. O(nodes), with their tokens O(tokens of the tree)."""
        nodes = tuple(self.describe_tree(tokens=tokens))
        core = self.core
        return TreeView(core.stats().steps, nodes, dict(core.readers()), core.on_disk())

    def view_glance(self, limits: Limits, *, tree: bool) -> Glance:
        """What the page shows, in bounded time: for Engine.ask. tree: whether it is looked at."""
        core = self.core
        streams = core.streams(time.monotonic(), limits.page_streams_max)
        if not tree:
            return Glance(streams)
        sketch = self.sketch_tree(limits.page_looks_max, limits.page_nodes_max)
        readers = dict(core.readers())
        on_disk = core.on_disk(limits.page_disk_tokens_max)
        return Glance(streams, TreeGlance(core.stats().steps, sketch, readers, on_disk))


@dataclass(frozen=True, slots=True)
class TreeGlance:
    """What can be seen of the tree, between two steps. readers, on_disk: as of a TreeView, of more
    nodes or fewer than are drawn."""

    step: int
    sketch: Sketch
    readers: Mapping[int, int]
    on_disk: Mapping[int, Mapping[Kind, int]]


@dataclass(frozen=True, slots=True)
class Glance:
    """What the page shows of one moment. tree: None where it was not asked for."""

    streams: tuple[StreamView, ...]
    tree: TreeGlance | None = None


@dataclass(frozen=True, slots=True)
class TreeView:
    """The tree between two steps, parents before their children."""

    step: int
    nodes: tuple[NodeView, ...]
    readers: Mapping[int, int]  # by id, of those that have any
    on_disk: Mapping[int, Mapping[Kind, int]]  # likewise, bytes

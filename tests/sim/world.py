"""Plays a scenario on the production core: safety after every step, then all must come to rest.

- One loop, no threads, no clock but a number: a scenario gives the same run on every machine.
- A daemon that dies (an allocation failed, within a step too often) or is drained comes again,
  empty; clients stay.
- After the last action everything heals: readers read, the device is quick, nothing breaks. From
  there on the work that is left bounds the steps that may pass (L2).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

from sapwood.scheduler.events import Failed
from sapwood.scheduler.outcomes import CancelReason
from sapwood.scheduler.result import DeviceExhausted
from tests.fakes import OutOfDeviceMemory
from tests.scheduler.fake_device import mix
from tests.scheduler.house import Stream
from tests.sim.life import Life
from tests.sim.story import (
    Action,
    Again,
    Ask,
    Back,
    Break,
    BreakDisk,
    Forget,
    Fork,
    GiveUp,
    Jump,
    Keep,
    Kill,
    LetGo,
    Open,
    Part,
    Pause,
    Scenario,
    Slow,
    Stall,
    Stop,
    TakeUp,
    Wipe,
)

PROMPT_TOKENS_MAX = 600
IDLE_S = 0.01


class World:
    """A scenario in play. Raises AssertionError at the first thing that should not be."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.tick = 0
        self.steps = 0
        self.streams: dict[int, Stream] = {}
        self.edges: Counter[tuple[str, str, str]] = Counter()
        self.faults: list[set[str]] = []  # of each tick
        self.life = Life(scenario.config, 1000.0)
        self._asks: dict[int, Ask] = {}
        self._paused: dict[int, int] = {}  # name: the tick it reads again
        self._read: dict[int, int] = {}  # name: bytes that were read
        self._slow_until = self._stalled_until = 0
        self._counts: dict[str, int] = {}

    def run(self) -> None:
        """Safety, then rest."""
        actions = list(self.scenario.actions)
        for tick in range(self.scenario.ticks):
            self.tick = tick
            self.faults.append(set())
            while actions and actions[0].at <= self.tick:
                with self._alive():
                    self._act(actions.pop(0))
            with self._alive():
                self._turn()
        self._rest()

    def story(self) -> str:
        """Where everybody is, for who reads of a violation."""
        plan = self.life.plans[-1] if self.life.plans else None
        told = f"tick {self.tick}, {self.steps + len(self.life.plans)} steps\nlast plan: {plan}"
        return "\n".join([told, *self.life.core.stories()])

    def _act(self, action: Action) -> None:
        match action:
            case Ask():
                self._ask(action)
            case Again(_, name, of):
                if of in self._asks:
                    self._ask(replace(self._asks[of], name=name))
            case Keep():
                if prompt := self._prompt(action.parts):
                    self.streams[action.name] = self.life.keep(prompt, action)
            case LetGo(_, name):
                stream = self.streams.get(name)
                if stream is not None and self._is_of_this_life(stream):
                    self._fault("unpinned")
                    self.life.let_go(stream)
            case Wipe():
                prefix = self._prompt(action.parts)
                if prefix or not action.parts:
                    self.life.wipe(prefix)
            case Open():
                self.life.talks.open(action)
            case Fork():
                self.life.talks.fork(action)
            case Back():
                self.life.talks.back(action)
            case Forget():
                self.life.talks.forget(action)
            case TakeUp(_, name, of):
                self._take_up(name, of)
            case GiveUp(_, name, why):
                if name in self.streams:
                    self._give_up(name, CancelReason[why])
            case Pause(at, name, ticks):
                self._paused[name] = at + ticks
            case Slow(at, ticks, factor):
                self._fault("slow device")
                self._slow_until, self.life.device.slow = at + ticks, factor
            case Break(_, after, once):
                self.life.device.tracker.operations_until_failure = after
                self.life.device.heals = once
            case Stop():
                self._fault("drain")
                self.life.drain()
            case BreakDisk(_, after, torn, stuck):
                self.life.disk.breaks_at = self.life.disk.operations + after
                self.life.disk.writes_fail, self.life.disk.erases_fail = not torn, stuck
            case Jump(_, seconds):
                self._fault("jump")
                self.life.deliver()  # what has ended has at this time, whenever it is told
                self.life.now += seconds
            case Stall(at, ticks):
                self._fault("slow disk")
                self._stalled_until = at + ticks
            case Kill():
                self._fault("kill")
                self.life.die()
                self._reopen()

    def _ask(self, ask: Ask) -> None:
        prompt = self._prompt(ask.parts)
        if not prompt:
            return
        if ask.session >= 0:
            stream = self.life.say(prompt, ask)
        else:
            self._asks[ask.name] = ask
            stream = self.life.ask(prompt, ask)
        if stream is not None:
            self.streams[ask.name] = stream

    def _take_up(self, name: int, of: int) -> None:
        old = self.streams.get(of)
        if old is None or not self._is_of_this_life(old):
            return
        taken_over = old.end is None
        stream = self.life.take_up(old)
        if stream is not None:
            self.streams[name] = stream
            self._fault("taken over" if taken_over else "resumed")

    def _prompt(self, parts: tuple[Part, ...]) -> tuple[int, ...]:
        tokens: tuple[int, ...] = ()
        for kind, which, count in parts:
            if kind == "pool":
                tokens += pool(which, count)
            elif which in self.streams:
                earlier = self.streams[which]
                turn = earlier.request.prompt + tuple(earlier.tokens)
                tokens += turn if count < 0 else turn[:count]
        return tokens[:PROMPT_TOKENS_MAX]

    def _turn(self) -> None:
        """Readers read, then the engine's loop goes round once."""
        life = self.life
        if self.tick >= self._slow_until:
            life.device.slow = 1.0
        life.disk.stalled = self.tick < self._stalled_until
        self._cut_slow_readers()
        if life.core.has_work:
            life.step()
        else:
            life.idle(IDLE_S)
        self._note()
        if life.core.finished:
            life.finish()
            self._reopen()

    def _cut_slow_readers(self) -> None:
        for name, until in list(self._paused.items()):
            stream = self.streams.get(name)
            if stream is None or self.tick >= until or stream.end is not None:
                del self._paused[name]
                continue
            unread = _bytes(stream) - self._read.setdefault(name, _bytes(stream))
            if unread > self.scenario.config.mailbox_bytes_max:
                self._give_up(name, CancelReason.SLOW_READER)

    def _give_up(self, name: int, why: CancelReason) -> None:
        stream = self.streams[name]
        if self._is_of_this_life(stream):
            self.life.give_up(stream, why)

    def _is_of_this_life(self, stream: Stream) -> bool:
        return self.life.streams.get(stream.request.id) is stream

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """The daemon dies of a failed allocation, and the next one begins."""
        try:
            yield
        except (OutOfDeviceMemory, DeviceExhausted):
            self._fault("allocation")
            self.faults[-1].update(f"disk {kind}" for kind in self.life.disk.broke)
            self.life.die()
            self._reopen()

    def _reopen(self) -> None:
        life = self.life
        for sequence in life.sequences:
            states = [(state.name, why) for _, state, why in sequence.story]
            for (before, _), (after, why) in pairwise(states):
                self.edges[before, after, why] += 1
        self.steps += len(life.plans)
        self.life = Life(life.config, life.now, life)
        self._counts = {}

    def _rest(self) -> None:
        """Everything heals; what is left ends within what it takes (L2), and nothing remains."""
        life = self.life
        life.device.slow = 1.0
        life.disk.stalled, life.disk.breaks_at = False, -1
        life.device.tracker.operations_until_failure = None
        life.run(life.steps_left_max())
        life.finish()
        self.steps += len(life.plans)
        if sum(len(stream.tokens) for stream in life.streams.values()) % 8 == 0:
            life.replay()
        self._reopen()

    def _fault(self, kind: str) -> None:
        self.faults[-1].add(kind)

    def _note(self) -> None:
        """What nobody ordered: what the core refused, dropped and expired since the last turn."""
        stats = self.life.core.stats()
        counts: dict[str, int] = {cause: n for cause, n in stats.tree_evictions.items()}
        counts["parked depth"], counts["parked"] = stats.parked_rows, stats.parks
        counts["lost step"] = self.life.lost_steps
        counts["damaged"] = stats.disk.quarantined
        counts["disk lost"] = stats.disk.state == "degraded"
        counts |= {f"disk {kind}": n for kind, n in self.life.disk.broke.items()}
        for stream in self.life.streams.values():
            if isinstance(stream.end, Failed):
                reason = stream.end.reason.name.lower()
                counts[reason] = counts.get(reason, 0) + 1
        for kind, count in counts.items():
            if count > self._counts.get(kind, 0):
                self._fault(kind)
        self._counts = counts


def pool(seed: int, tokens: int) -> tuple[int, ...]:
    """The first `tokens` ids of an endless row that is `seed`'s own."""
    return tuple(4 + mix(mix(11, seed), i) % 44 for i in range(tokens))


def _bytes(stream: Stream) -> int:
    return len(stream.text.encode()) + 4 * len(stream.tokens)

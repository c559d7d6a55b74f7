"""What the core holds, and what may be asked of it between two steps.

- Nothing that is asked here changes anything but `take_effects`, which hands out, and `close`.
"""

from __future__ import annotations

from collections.abc import Mapping

from sapwood.cache.prefix.catalogue import Kind
from sapwood.cache.prefix.ledger import Ledger
from sapwood.cache.prefix.tree import Tree
from sapwood.scheduler.core.memory import DeviceMemory
from sapwood.scheduler.core.meters import Meters
from sapwood.scheduler.core.roster import Roster
from sapwood.scheduler.core.sessions import Sessions
from sapwood.scheduler.core.waiting import Waiting
from sapwood.scheduler.disk import DiskOrder, PageOut
from sapwood.scheduler.events import Effect, PinView
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.model_facts import ModelFacts
from sapwood.scheduler.policy.reply_length import ReplyLength
from sapwood.scheduler.session_events import HeldSession, SessionKey, SessionView
from sapwood.scheduler.stats import Stats
from sapwood.scheduler.stream_view import StreamView


class CoreState:
    """Sequences, memory, sessions, counts and effects of one core, which alone writes to them."""

    _sessions: Sessions  # the core's to make: it makes sequences

    def __init__(
        self, facts: ModelFacts, limits: Limits, tree: Tree, ledger: Ledger, depth_max: int
    ) -> None:
        """The core owns tree and ledger from here on."""
        self._facts, self._limits = facts, limits
        self._tree = tree
        self._reply_length = ReplyLength(limits.reply_tokens_guess)
        self._memory = DeviceMemory(facts, limits, tree, ledger, self._reply_length)
        self._roster = Roster(limits.slots_max, Waiting(limits, self._memory))
        self._meters = Meters(depth_max)
        self._effects: list[Effect] = []
        self._steps = 0
        self._draining = False
        self._waits_for_disk = False  # there was no plan, and some wait for a report

    @property
    def has_work(self) -> bool:
        """Whether the loop must go on without waiting for a command."""
        return bool(self._effects) or (bool(self._roster) and not self._waits_for_disk)

    @property
    def _step(self) -> int:
        """The newest that the tree knows of: a plan that came to nothing had a number too."""
        return max(self._steps, self._tree.now)

    @property
    def finished(self) -> bool:
        """After Drain, when every sequence has ended, left its slot, and told so."""
        return self._draining and not (self._roster or self._effects)

    @property
    def spare_bytes(self) -> int:
        """What nothing lies in between two steps: reserved for a step, or by nobody."""
        account = self._memory.bytes
        return account.workspace + account.free

    def take_disk_orders(self) -> tuple[DiskOrder, ...]:
        """What the disk is to do since the last call, in order; each order is handed out once."""
        return self._memory.disk.take_orders()

    def page_out(self, now: float) -> PageOut | None:
        """What is to be copied now, between two steps; its payloads are lent until the next."""
        return self._memory.disk.page_out(now, self.spare_bytes)

    def take_effects(self) -> tuple[Effect, ...]:
        """What happened since the last call, in order; each effect is handed out once."""
        effects = tuple(self._effects)
        self._effects.clear()
        return effects

    def stats(self) -> Stats:
        """All counts of this moment; cheap enough for every step."""
        memory, roster = self._memory, self._roster
        live = roster.live.values()
        holders = [(s.lease, s.demand.base) for s in live if s.lease and s.demand.base]
        held = memory.bytes, self._tree.read_bytes(holders), memory.buffers
        told = *held, memory.disk.stats()
        return self._meters.publish(self._steps, roster.counts, self._tree, *told)

    def pins(self, now: float) -> tuple[PinView, ...]:
        """What is pinned, oldest first."""
        return self._memory.pins.views(now)

    def sessions(self, owner: str, now: float) -> tuple[SessionView, ...]:
        """Its owner's, by name."""
        return self._sessions.views(owner, now)

    def session(self, key: SessionKey, now: float) -> HeldSession | None:
        """None where there is no such session."""
        return self._sessions.held(key, now)

    def readers(self) -> Mapping[int, int]:
        """By the id of a tree's node: how many slots read its full K/V where it lies."""
        return self._roster.readers

    def on_disk(self, tokens_max: int | None = None) -> Mapping[int, Mapping[Kind, int]]:
        """By the id of a tree's node: bytes on disk of the blocks that end in it. O(tokens).

        tokens_max: of about so many tokens; the nodes past them are left out.
        """
        return self._memory.disk.by_node(tokens_max)

    def streams(self, now: float, most: int) -> tuple[StreamView, ...]:
        """Who has a slot, in order of admission, then who waits for one; `most` of them."""
        return self._roster.views(now, most)

    def check(self) -> None:
        """Assert L1, M1 and the tree's own invariants. O(sequences + tree)."""
        self._roster.check()
        self._memory.check(len(self._roster.live) + len(self._roster.leaving))
        self._memory.pins.check()
        self._sessions.check((*self._roster.waiting, *self._roster.live.values()))

    def close(self) -> None:
        """After the last step of a finished core: what it stored is freed, all of it (M3)."""
        assert self.finished, "a core that still has work"
        self._memory.pins.close(self._step)
        self._memory.close()

    def stories(self) -> list[str]:
        """What every sequence that is not gone yet went through, without any of its text."""
        return self._roster.stories()

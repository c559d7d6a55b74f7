"""The disk under the tree, as the core sees it: a catalogue, what is read, and what is written.

- The core orders and is told; a thread of its own does it (cache/disk). Nothing here waits.
- What is cleared is cleared here too: who ordered it hears once the files are gone.
- A folder that fails is left alone from then on: there is memory alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sapwood.cache.prefix.catalogue import Kind
from sapwood.cache.prefix.radix import pack
from sapwood.cache.prefix.tree import Match
from sapwood.scheduler.core.page_ins import PageIns
from sapwood.scheduler.core.page_outs import PageOuts
from sapwood.scheduler.core.sequence import Sequence
from sapwood.scheduler.core.snapshot_room import SnapshotRoom
from sapwood.scheduler.disk import (
    DiskFailed,
    DiskFolder,
    DiskOrder,
    DiskReport,
    DiskStats,
    Erase,
    Erased,
    PagedIn,
    PageOut,
    Written,
)
from sapwood.scheduler.events import Clear, Cleared, Failed
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.model_facts import ModelFacts
from sapwood.scheduler.reasons import Reason

# Seconds that computing so many tokens of a prompt from a position on takes, 0 where nobody knows.
ReadingTime = Callable[[int, int], float]

LEFT = "the cache folder cannot be written to: files of what was cleared are left in it"


class NoDisk:
    """Where prefixes are kept in memory alone."""

    is_reading = False  # whether somebody waits for the disk

    def begin_plan(self, step: int, now: float) -> None:
        """Before anything of a plan is decided."""

    def waits(self, _sequence: Sequence) -> bool:
        """Whether something is being read for it."""
        return False

    def awaits(self, _sequence: Sequence, _match: Match) -> bool:
        """Whether it is to wait for the disk; begins to read where that pays."""
        return False

    def stored(self, sequence: Sequence, end: int) -> None:
        """A prompt or a reply ended at `end` and lies in the tree; 0: nothing did."""

    def give_up(self, id: int, step: int) -> None:
        """The sequence ended."""

    def stop_reading(self, step: int) -> None:
        """Nothing comes back any more of what is being read."""

    def clear(self, _order: Clear, cleared: Cleared) -> list[Cleared]:
        """Remove the files as well; whoever is not told here is told when they are gone."""
        return [cleared]

    def take(self, report: DiskReport, _step: int) -> list[Cleared | Failed]:
        """What the disk says; returns what those who cleared are told of it."""
        raise AssertionError(f"{type(report).__name__} without a disk")

    def take_orders(self) -> tuple[DiskOrder, ...]:
        """What is to be done, in order; each is handed out once."""
        return ()

    def page_out(self, _now: float, _spare_bytes: int) -> PageOut | None:
        """PageOuts.next; never while something is read."""
        return None

    def by_node(self) -> Mapping[int, Mapping[Kind, int]]:
        """By the id of a tree's node: bytes on disk of the blocks that end in it. O(tokens)."""
        return {}

    def stats(self) -> DiskStats:
        """All counts of this moment."""
        return DiskStats()


class DiskTier(NoDisk):
    """One folder's part of the core. Single-threaded, like all of it."""

    def __init__(
        self,
        facts: ModelFacts,
        limits: Limits,
        stored: SnapshotRoom,
        folder: DiskFolder,
        reading_s: ReadingTime,
    ) -> None:
        self._names, self._catalogue = folder.names, folder.catalogue
        self._orders: list[DiskOrder] = []
        self._tree, order = stored.tree, self._orders.append
        self._ins = PageIns(limits, self._tree, stored, folder.names, folder.catalogue, order)
        per_token = {"full": facts.full_bytes_per_token, "sliding": facts.sliding_bytes_per_token}
        self._outs = PageOuts(self._tree, folder, per_token, order)  # type: ignore[arg-type]
        if adrift := folder.catalogue.adrift():
            order(Erase(tuple(adrift)))
        self._reading_s = reading_s
        self._failed = folder.failed
        self._clearings: dict[int, Cleared] = {}
        self._quarantined = 0
        self._step, self._now = 0, 0.0
        stored.give_way = self._ins.give_way

    @property
    def is_reading(self) -> bool:  # type: ignore[override]
        """NoDisk.is_reading."""
        return bool(len(self._ins))

    def take_orders(self) -> tuple[DiskOrder, ...]:
        """NoDisk.take_orders."""
        orders = tuple(self._orders)
        self._orders.clear()
        return orders

    def begin_plan(self, step: int, now: float) -> None:
        """NoDisk.begin_plan."""
        self._step, self._now = step, now
        self._ins.expire(step, now)

    def waits(self, sequence: Sequence) -> bool:
        """NoDisk.waits."""
        return self._ins.waits(sequence)

    def awaits(self, sequence: Sequence, match: Match) -> bool:
        """NoDisk.awaits."""
        if self._failed or sequence.request.cache_bypass or sequence.scores_left:
            return False
        return self._ins.begin(sequence, match, self._reading_s, self._step, self._now)

    def stored(self, sequence: Sequence, end: int) -> None:
        """NoDisk.stored."""
        if end and not self._failed:
            self._outs.stored(sequence.request.root, sequence.packed_path(end), end)

    def page_out(self, now: float, spare_bytes: int) -> PageOut | None:
        """NoDisk.page_out."""
        return None if self._failed or len(self._ins) else self._outs.next(now, spare_bytes)

    def take(self, report: DiskReport, step: int) -> list[Cleared | Failed]:
        """NoDisk.take."""
        match report:
            case PagedIn():
                gone = [file for key in report.bad for file in self._catalogue.forget(key)]
                if gone:
                    self._orders.append(Erase(tuple(gone)))
                self._quarantined += report.quarantined
                self._ins.take(report, step)
            case Written():
                self._outs.take(report)
            case Erased(id, left):
                cleared = self._clearings.pop(id)
                return [Failed(id, Reason.UNSUPPORTED, LEFT) if left else cleared]
            case DiskFailed():  # pragma: no branch (there is no fifth)
                self._failed = True
                self._ins.give_way(step)
                self._outs.forget(pack(()))
        return []

    def give_up(self, id: int, step: int) -> None:
        """NoDisk.give_up."""
        self._ins.give_up(id, step)

    def stop_reading(self, step: int) -> None:
        """NoDisk.stop_reading."""
        self._ins.give_way(step)

    def clear(self, order: Clear, cleared: Cleared) -> list[Cleared]:
        """NoDisk.clear."""
        tokens = pack(order.tokens)
        self._outs.forget(tokens)
        self._clearings[order.id] = cleared
        paths = self._names.paths(tokens, len(tokens))
        if len(paths) > 1:
            self._orders.append(Erase(tuple(self._catalogue.forget_path(paths)), order.id))
        else:  # less than a block: what begins so cannot be told from the rest
            self._catalogue.forget_all()
            self._orders.append(Erase(None, order.id))
        return []

    def by_node(self) -> Mapping[int, Mapping[Kind, int]]:
        """NoDisk.by_node."""
        return self._tree.on_disk(self._names, self._catalogue)

    def stats(self) -> DiskStats:
        """NoDisk.stats."""
        return DiskStats(
            "degraded" if self._failed else "ok",
            dict(self._catalogue.bytes),
            self._ins.read_bytes,
            self._outs.written_bytes,
            self._quarantined,
        )

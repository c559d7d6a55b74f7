"""The disk under the tree, as the core sees it: a catalogue, what is read, and what is written.

- The core orders and is told; a thread of its own does it (cache/disk). Nothing here waits.
- What is cleared is cleared here too: who ordered it hears once the files are gone.
- A folder that fails is left alone from then on: there is memory alone.
- What lies in the folder is told of bit by bit. Until all of it is known nothing is written, who
  may find something waits for no longer than for a read, and what is to be erased is found later.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from sapwood.cache.prefix.catalogue import DiskFile, Kind
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
    FilesFound,
    ForgottenPath,
    PagedIn,
    PageOut,
    Written,
)
from sapwood.scheduler.events import Clear, Cleared, Failed
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.model_facts import ModelFacts
from sapwood.scheduler.reasons import Reason
from sapwood.scheduler.session_events import SessionTold

# Seconds that computing so many tokens of a prompt from a position on takes, 0 where nobody knows.
ReadingTime = Callable[[int, int], float]
Told = Cleared | SessionTold

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

    def clear(self, _order: Clear, cleared: Cleared) -> list[Told | Failed]:
        """Remove the files as well; whoever is not told here is told when they are gone."""
        return [cleared]

    def forget_path(self, _path: ForgottenPath, told: Told | None) -> list[Told | Failed]:
        """Remove the files of a path that lead nowhere else of the same tenant's; as clear()."""
        return [] if told is None else [told]

    def forget_root(self, _root: bytes, cleared: Cleared) -> list[Told | Failed]:
        """Remove all files of a tenant, under whatever model; as clear()."""
        return [cleared]

    def take(self, report: DiskReport, _step: int) -> list[Told | Failed]:
        """What the disk says; returns what those who cleared are told of it."""
        raise AssertionError(f"{type(report).__name__} without a disk")

    def take_orders(self) -> tuple[DiskOrder, ...]:
        """What is to be done, in order; each is handed out once."""
        return ()

    def page_out(self, _now: float, _spare_bytes: int) -> PageOut | None:
        """PageOuts.next; never while something is read."""
        return None

    def by_node(self, _tokens_max: int | None) -> Mapping[int, Mapping[Kind, int]]:
        """By the id of a tree's node: bytes on disk of the blocks that end in it. O(tokens).

        tokens_max: of about so many tokens; the nodes past them are left out.
        """
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
        self._tenants = folder.tenants
        self._reading_s, self._wait_s = reading_s, limits.page_in_s_max
        self._least = limits.share_tokens_min
        self._failed = self._unopened = folder.failed
        self._told: dict[int, Told] = {}  # once their files are gone
        self._quarantined = 0
        self._step, self._now = 0, 0.0
        self._loading = folder.loading
        self._load_by, self._load_awaited = math.inf, False
        self._later: list[Callable[[], list[Told | Failed]]] = []  # once all is known
        if not self._loading:
            self._drop_foreign()
        stored.give_way = self._ins.give_way

    @property
    def is_reading(self) -> bool:  # type: ignore[override]
        """NoDisk.is_reading."""
        return bool(len(self._ins)) or self._load_awaited

    def take_orders(self) -> tuple[DiskOrder, ...]:
        """NoDisk.take_orders."""
        orders = tuple(self._orders)
        self._orders.clear()
        return orders

    def begin_plan(self, step: int, now: float) -> None:
        """NoDisk.begin_plan."""
        self._step, self._now, self._load_awaited = step, now, False
        self._ins.expire(step, now)

    def waits(self, sequence: Sequence) -> bool:
        """NoDisk.waits."""
        return self._ins.waits(sequence)

    def awaits(self, sequence: Sequence, match: Match) -> bool:
        """NoDisk.awaits."""
        if self._failed or sequence.bypasses or sequence.scores_left:
            return False
        if self._loading:
            return self._awaits_folder(sequence)
        return self._ins.begin(sequence, match, self._reading_s, self._step, self._now)

    def stored(self, sequence: Sequence, end: int) -> None:
        """NoDisk.stored."""
        if end and not (self._failed or sequence.off_disk):
            self._outs.stored(sequence.request.root, sequence.packed_path(end), end)

    def page_out(self, now: float, spare_bytes: int) -> PageOut | None:
        """NoDisk.page_out."""
        if self._failed or self._loading or len(self._ins):
            return None
        return self._outs.next(now, spare_bytes)

    def take(self, report: DiskReport, step: int) -> list[Told | Failed]:
        """NoDisk.take."""
        match report:
            case FilesFound(files, budget_bytes):
                self._catalogue.add(files)
                if budget_bytes is not None:
                    self._outs.may_write(budget_bytes)
                    return self._loaded()
            case PagedIn():
                gone = [file for key in report.bad for file in self._catalogue.forget(key)]
                if gone:
                    self._orders.append(Erase(tuple(gone)))
                self._quarantined += report.quarantined
                self._ins.take(report, step)
            case Written():
                self._outs.take(report)
            case Erased(id, left):
                told = self._told.pop(id)
                return [Failed(id, Reason.UNSUPPORTED, LEFT) if left else told]
            case DiskFailed():  # pragma: no branch (there is no sixth)
                self._failed = True
                self._ins.give_way(step)
                self._outs.forget(pack(()))
                self._unopened |= self._loading  # nor is it known what lies there
                return self._loaded() if self._loading else []
        return []

    def give_up(self, id: int, step: int) -> None:
        """NoDisk.give_up."""
        self._ins.give_up(id, step)

    def stop_reading(self, step: int) -> None:
        """NoDisk.stop_reading."""
        self._ins.give_way(step)

    def clear(self, order: Clear, cleared: Cleared) -> list[Told | Failed]:
        """NoDisk.clear."""
        tokens = pack(order.tokens)
        self._outs.forget(tokens)
        paths = self._names.paths(tokens, len(tokens))
        if len(paths) > 1 and not self._unopened:
            return self._erase(lambda: self._catalogue.forget_path(paths), cleared)
        # Less than a block, or a folder that nobody could read: it cannot be told from the rest.
        return self._erase(self._forget_all, cleared)

    def forget_path(self, path: ForgottenPath, told: Told | None) -> list[Told | Failed]:
        """NoDisk.forget_path."""
        self._outs.forget_own(path.root, path.tokens, path.kept)
        blocks = self._names.blocks(path.root, path.tokens, len(path.tokens))
        own = [block for block in blocks if block.end > path.kept]
        if not own:
            return [] if told is None else [told]
        tenant = self._names.tenant(path.root)
        return self._erase(lambda: self._catalogue.forget_own(own, tenant), told)

    def forget_root(self, root: bytes, cleared: Cleared) -> list[Told | Failed]:
        """NoDisk.forget_root."""
        if self._unopened:
            return [Failed(cleared.id, Reason.UNSUPPORTED, LEFT)]
        self._outs.forget_root(root)
        tenant = self._names.tenant(root)
        return self._erase(lambda: self._catalogue.forget_tenants(tenant.__eq__), cleared)

    def _erase(
        self, find: Callable[[], list[DiskFile] | None], told: Told | None
    ) -> list[Told | Failed]:
        """Remove what is found, None: all; `told` is told when that is gone.

        Where somebody is to be told the disk is asked although nothing is found: what was put aside
        is known to nobody here.
        """
        if self._loading:
            self._later.append(lambda: self._erase(find, told))
            return []
        found = find()
        files = None if found is None else tuple(found)
        if told is None:
            self._orders += [Erase(files)] if found else []
            return []
        if found == [] and self._unopened:
            return [told]
        self._told[told.id] = told
        self._orders.append(Erase(files, told.id, aside=True))
        return []

    def _forget_all(self) -> None:
        self._catalogue.forget_all()

    def _awaits_folder(self, sequence: Sequence) -> bool:
        """Whether it may find something once the folder is known, which will be soon."""
        least = max(self._names.block_tokens, self._least)
        if sequence.asked_disk or len(sequence.packed) <= least:
            return False
        self._load_by = min(self._load_by, self._now + self._wait_s)
        waits = self._now < self._load_by
        self._load_awaited |= waits
        return waits

    def _loaded(self) -> list[Told | Failed]:
        """All that lies in the folder is known."""
        self._loading = self._load_awaited = False
        self._drop_foreign()
        later, self._later = self._later, []
        return [told for erase in later for told in erase()]

    def _drop_foreign(self) -> None:
        """What nothing leads to any more, and what is of nobody who may come."""
        gone, tenants = self._catalogue.adrift(), self._tenants
        foreign = []
        if tenants is not None:
            foreign = self._catalogue.forget_tenants(lambda tenant: tenant not in tenants)
        if gone or foreign:
            self._orders.append(Erase((*gone, *foreign), aside=bool(foreign)))

    def by_node(self, tokens_max: int | None) -> Mapping[int, Mapping[Kind, int]]:
        """NoDisk.by_node."""
        return self._tree.on_disk(self._names, self._catalogue, tokens_max)

    def stats(self) -> DiskStats:
        """NoDisk.stats."""
        return DiskStats(
            "degraded" if self._failed else "ok",
            dict(self._catalogue.bytes),
            self._ins.read_bytes,
            self._outs.written_bytes,
            self._quarantined,
        )

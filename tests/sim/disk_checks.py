"""What of a disk tier every moment has to say for itself (T14, T15), and what a next life finds.

- Who was told that files are gone finds none: neither under their names, nor put aside, nor left by
  a write that failed. Who was told that files are left is told the truth.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Sequences
from typing import TYPE_CHECKING

from sapwood.cache.prefix.catalogue import DISK_KINDS as KINDS
from sapwood.cache.prefix.catalogue import Catalogue, DiskFile
from sapwood.cache.prefix.radix import pack
from sapwood.scheduler.core.page_outs import DAY_S
from sapwood.scheduler.disk import DiskFolder
from tests.scheduler.disk_house import NAMES, FakeDisk
from tests.scheduler.house import Stream
from tests.sim.story import Config

if TYPE_CHECKING:
    from tests.sim.life import Life

Found = Sequences[DiskFile]


class DiskChecks:
    """Of one life, which began at `now`."""

    def __init__(self, disk: FakeDisk, config: Config, now: float) -> None:
        self._disk, self._config, self._began = disk, config, now
        self._may, self._at, self._copied = float(config.disk_writes_bytes), now, 0

    def look(self, now: float) -> None:
        """T15: no more bytes than there may be, once what is ordered is done, and in a day."""
        disk, config = self._disk, self._config
        held = sum(disk.sizes[key] for key in disk.files)
        fits = disk.busy or held <= config.disk_bytes
        assert fits, f"T15: {held} bytes, {config.disk_bytes} may be"
        a_day = config.disk_writes_bytes
        may = a_day * (1 + (now - self._began) / DAY_S)
        assert disk.written_bytes <= may, f"T15: {disk.written_bytes} bytes written of {may}"

    def copied(self, now: float) -> None:
        """T15: however long nothing was written, no more than a day's at once."""
        a_day, disk = self._config.disk_writes_bytes, self._disk
        self._may = min(a_day, self._may + (now - self._at) * a_day / DAY_S)
        self._may -= disk.copied_bytes - self._copied
        self._at, self._copied = now, disk.copied_bytes
        assert self._may > -1, f"T15: {-self._may} bytes more than a day's at once"

    def erased(self, tokens: tuple[int, ...], streams: Iterable[Stream]) -> None:
        """T14: no file is left of what anybody has whose tokens begin so."""
        disk = self._disk
        unknown = disk.aside.keys() | disk.lost.keys()
        assert not unknown, f"T14: {len(unknown)} files of whomever"
        for stream in streams:
            path = (*stream.request.prompt, *stream.tokens)
            if path[: len(tokens)] != tokens:
                continue
            for block in NAMES.blocks(stream.request.root, pack(path), len(path)):
                left = [kind for kind in KINDS if (block.name, kind) in disk.files]
                assert block.end <= len(tokens) or not left, f"T14: a file of [.., {block.end})"


def found_by_the_next(config: Config, before: Life | None) -> Found:
    """What the journal of the life before knows and is there."""
    if not config.disk_bytes or before is None:
        return []
    known = before.core._memory.disk._catalogue._files  # type: ignore[attr-defined]
    return [file for key, file in known.items() if key in before.disk.files]


def folder_of(config: Config, found: Found) -> DiskFolder | None:
    """For the core to own; None without a disk."""
    if not config.disk_bytes:
        return None
    writes = config.disk_writes_bytes
    return DiskFolder(NAMES, Catalogue(config.disk_bytes, NAMES.top, found), writes, writes)

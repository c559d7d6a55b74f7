"""A disk tier put together: a folder on disk, its catalogue for the core, its store.

- Opened before the model is loaded: a folder that is in use, or not ours, ends a start at once.
- A disk that is full or read-only does not: then there is memory alone, and a line in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sapwood.cache.disk.block_file import BlockLayout
from sapwood.cache.disk.folder import Folder, FolderRefused
from sapwood.cache.disk.journal import Journal
from sapwood.cache.disk.store import RawReport, Store, open_journal
from sapwood.cache.prefix.blocks import Names, block_tokens
from sapwood.cache.prefix.catalogue import DISK_KINDS, Catalogue, Kind
from sapwood.daemon.errors import StartError
from sapwood.daemon.settings.config import Config
from sapwood.model.pager import Pager
from sapwood.scheduler.disk import DiskFolder
from sapwood.scheduler.limits import Limits
from sapwood.scheduler.model_facts import ModelFacts

_ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2}
_NO_SALT = b"nothing lies there"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OpenDisk:
    """A folder, locked and read. None: the disk does not do."""

    folder: Folder | None
    journal: Journal | None
    bytes_max: int
    bytes_a_day: int

    def for_core(self, facts: ModelFacts) -> DiskFolder:
        """What the core is to own of it."""
        dearest = max(facts.full_bytes_per_token, facts.sliding_bytes_per_token)
        salt = _NO_SALT if self.folder is None else self.folder.salt
        names = Names(salt, block_tokens(dearest))
        files = () if self.journal is None else self.journal.files.values()
        left = self.bytes_a_day if self.journal is None else self.journal.budget_bytes
        catalogue = Catalogue(self.bytes_max, names.top, files)
        return DiskFolder(names, catalogue, self.bytes_a_day, left, self.folder is None)

    def opener(
        self, pager: Pager, tokens: int
    ) -> Callable[[Callable[[RawReport], None]], Store] | None:
        """What starts the thread that reads and writes blocks of so many tokens."""
        if self.folder is None or self.journal is None:
            return None
        dtype, layouts = pager.dtype_name, dict[Kind, BlockLayout]()
        for kind in DISK_KINDS:
            if (shape := pager.shape(kind, tokens)) is not None:
                layouts[kind] = BlockLayout(dtype, _ITEM_BYTES[dtype], shape)
        folder, journal = self.folder, self.journal
        return lambda report: Store(folder, journal, layouts, report)

    def close(self) -> None:
        """Give the folder back: there will be no store."""
        if self.folder is not None:
            self.folder.close()


def open_disk(config: Config) -> OpenDisk | None:
    """None: nobody wants one. Raises StartError."""
    path, budget = config.cache_dir, config.cache_writes_bytes
    if path is None:
        return None
    folder, journal = None, None
    try:
        folder = _folder(path)
        journal = open_journal(folder, config.cache_disk_bytes, budget)
    except OSError as error:
        if folder is not None:
            folder.close()
        folder = journal = None
        _log.warning("prefixes are kept in memory alone: --cache-dir: %s", error.strerror)
    return OpenDisk(folder, journal, config.cache_disk_bytes, budget)


def _folder(path: Path) -> Folder:
    try:
        return Folder(path)
    except FolderRefused as refused:
        raise StartError(f"--cache-dir {path}: {refused}") from None
    except NotADirectoryError:
        raise StartError(f"--cache-dir {path}: it is no folder") from None


def disk_bytes(limits: Limits) -> int:
    """What the process takes at most for what is being read and written."""
    return 6 * limits.read_bytes_max
